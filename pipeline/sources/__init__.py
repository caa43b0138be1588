"""The registry of sources. Listing it imports none of them: a value is ``"module:Class"``."""

from importlib import import_module
from pathlib import Path

from pipeline.source_settings import Source as SourceSettings
from pipeline.sources.base import Source

SOURCES = {
    "kuairand": "pipeline.sources.kuairand:KuaiRand",
    "mapping": "pipeline.sources.mapping:MappedLog",
    "movielens": "pipeline.sources.movielens:MovieLens",
    "open_bandit": "pipeline.sources.open_bandit:OpenBandit",
    "rl4rs": "pipeline.sources.rl4rs:RL4RS",
    "storefront": "pipeline.sources.storefront:StorefrontLog",
    "taobao": "pipeline.sources.taobao:Taobao",
    "yoochoose": "pipeline.sources.yoochoose:YooChoose",
}


def open_source(settings: SourceSettings, folder: Path) -> Source:
    """The source that an experiment names. ``folder`` is where a source may keep what it generates itself."""
    module, name = SOURCES[settings.kind].split(":")
    source: Source = getattr(import_module(module), name)(settings, folder)
    return source
