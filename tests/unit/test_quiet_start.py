"""The start prints no hints from libraries about parts that we never use."""

from __future__ import annotations

import logging

import pytest

import trainer  # noqa: F401  (it sets the filter)


def test_the_hint_to_install_an_unused_kernel_is_left_out(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "No module named 'kernels'")
    logger.warning("another warning")
    assert caplog.messages == ["another warning"]
