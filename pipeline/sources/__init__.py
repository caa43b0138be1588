"""The registry of sources. Listing it imports none of them: a value is ``"module:Class"``."""

from importlib import import_module
from pathlib import Path

from pipeline.experiment import Source as SourceSettings
from pipeline.sources.base import Source

SOURCES = {
    "movielens": "pipeline.sources.movielens:MovieLens",
    "storefront": "pipeline.sources.storefront:StorefrontLog",
}


def open_source(settings: SourceSettings, folder: Path) -> Source:
    """The source that an experiment names. ``folder`` is where a source may keep what it generates itself."""
    module, name = SOURCES[settings.kind].split(":")
    source: Source = getattr(import_module(module), name)(settings, folder)
    return source
