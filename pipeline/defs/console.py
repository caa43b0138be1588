"""What a terminal sees of a run: the assets' own lines. The full event log is in the UI."""

import logging

import dagster as dg


class _OwnLines(logging.Filter):
    """Drops Dagster's events, which carry stack traces and internals; assets' messages and framework errors stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", None) or {}
        # After a failure Dagster says this of every step that comes later.
        skipped = str(meta.get("orig_message", "")).startswith("Dependencies for step")
        return record.levelno >= logging.INFO and not meta.get("dagster_event") and not skipped


class _Message(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None) or {}
        return f"  {meta.get('orig_message') or record.getMessage()}"


@dg.logger(config_schema={}, description="One plain line a message.")
def plain(context: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("hindsight-console")
    handler = logging.StreamHandler()
    handler.addFilter(_OwnLines())
    handler.setFormatter(_Message())
    logger.addHandler(handler)
    return logger
