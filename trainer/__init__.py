"""Run directory in, adapter and report out."""

import logging


def _is_useful(record: logging.LogRecord) -> bool:
    return "Failed to load CPU gemm_4bit_forward" not in record.getMessage()


# bitsandbytes says at every import that an optional kernel is not installed. Training never uses that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_useful)
