# SPDX-License-Identifier: Apache-2.0
"""The logger speaks on stderr once, obeys its switches, and leaves the application in charge."""

import logging
import subprocess
import sys

import pytest

from nncf.common.logging.logger import (
    disable_logging,
    nncf_logger,
    set_log_file,
    set_log_level,
)


@pytest.fixture(autouse=True)
def _as_before():
    yield
    for handler in nncf_logger.handlers[1:]:
        nncf_logger.removeHandler(handler)
        handler.close()
    set_log_level(logging.INFO)


def run(code):
    """Return ``(stdout, stderr)`` of code that has the logger."""
    code = f"from nncf.logging import *\nfrom nncf.logging import nncf_logger as log\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_messages_go_to_stderr_once():
    """Without any configuration, a message appears once, on stderr, from INFO on."""
    assert run("log.info('a'); log.debug('b')") == ("", "INFO:nncf:a\n")


def test_the_application_decides_when_it_configures_logging():
    """With handlers on the root logger, ours stays silent."""
    code = "import logging; logging.basicConfig(format='mine %(message)s'); log.info('a')"
    assert run(code) == ("", "mine a\n")


def test_levels_and_silence(caplog):
    """set_log_level and disable_logging do what they say."""
    set_log_level(logging.ERROR)
    nncf_logger.warning("no")
    disable_logging()
    nncf_logger.error("no")
    set_log_level("DEBUG")
    nncf_logger.debug("yes")
    assert caplog.messages == ["yes"]


def test_log_file(tmp_path):
    """Messages are written to the last file that was named."""
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    set_log_file(first)
    nncf_logger.info("one")
    set_log_file(second)
    nncf_logger.info("two")
    assert first.read_text(encoding="utf-8") == "INFO:nncf:one\n"
    assert second.read_text(encoding="utf-8") == "INFO:nncf:two\n"
