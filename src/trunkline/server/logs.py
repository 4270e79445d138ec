"""Logs as JSON lines on standard error: what happened, never what was asked about."""

import logging
import sys
import time

import msgspec

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """One object a line: time, level, event, and what was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _PLAIN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def set_up_logs(level: str = "INFO") -> logging.Logger:
    """Send the logs of the server, and of the libraries under it, to standard error.

    Returns:
        The server's own logger.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("trunkline.server", "uvicorn", "uvicorn.error", "asyncio", "grpc"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level if name == "trunkline.server" else "WARNING")
    return logging.getLogger("trunkline.server")
