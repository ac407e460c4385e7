"""What a failure is put down to, and whether it is tried again."""

from __future__ import annotations

import errno
import signal

import pytest

from elder.ablation.running.failures import (
    STOPPED,
    Failure,
    Kind,
    classify,
    counts,
    last_line,
    of_error,
    worth_retrying,
)

ERROR = "Epoch 3\nerror: {}\nFor the traceback: ELDER_TRACEBACK=1\n"


@pytest.mark.parametrize(
    ("status", "log", "kind"),
    [
        (2, ERROR.format("model.lr: expected float, got many"), Kind.CONFIGURATION),
        (1, ERROR.format("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"), Kind.OUT_OF_MEMORY),
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", Kind.CRASH),
        (1, ERROR.format("MemoryError"), Kind.OUT_OF_MEMORY),
        (1, ERROR.format("LBFGS: the gradient is not finite at step 3"), Kind.DIVERGENCE),
        (1, ERROR.format("[Errno 28] No space left on device: 'x'"), Kind.DISK),
        (1, ERROR.format("[Errno 116] Stale file handle"), Kind.NODE),
        (1, ERROR.format("CUDA error: uncorrectable ECC error encountered"), Kind.NODE),
        (1, ERROR.format("KeyError: 'x'"), Kind.CRASH),
        (1, "", Kind.CRASH),
        (-signal.SIGSEGV, "", Kind.CRASH),
        (-signal.SIGKILL, "", Kind.PREEMPTION),
        (-signal.SIGUSR1, "", Kind.PREEMPTION),
        (128 + signal.SIGUSR1, "", Kind.PREEMPTION),
        (STOPPED, "", Kind.PREEMPTION),
        (None, "", Kind.NODE),
    ],
)
def test_kinds(status: int | None, log: str, kind: Kind) -> None:
    failure = classify(status, log)
    assert failure.kind is kind
    assert failure.exit_status == status
    assert failure.message


def test_the_last_thing_that_went_wrong_decides() -> None:
    log = "warning: the loss is not finite\n" + "fine\n" * 50 + "error: KeyError: 'x'"
    assert classify(1, log).kind is Kind.CRASH


def test_the_kernel_and_the_scheduler_know_better_than_the_log() -> None:
    assert classify(-signal.SIGKILL, "", out_of_memory=True).kind is Kind.OUT_OF_MEMORY
    assert classify(1, ERROR.format("KeyError"), out_of_memory=True).kind is Kind.CRASH
    assert classify(1, "", "TIMEOUT").kind is Kind.TIMEOUT
    assert classify(-9, "", "OUT_OF_MEMORY").kind is Kind.OUT_OF_MEMORY
    assert classify(-9, "", "NODE_FAIL").kind is Kind.NODE
    assert classify(None, "", "PREEMPTED").kind is Kind.PREEMPTION
    assert classify(None, "", "CANCELLED by 0").kind is Kind.PREEMPTION
    assert classify(1, ERROR.format("KeyError"), "FAILED").kind is Kind.CRASH
    assert classify(STOPPED, "", timed_out=True).kind is Kind.TIMEOUT


def test_the_message_is_the_line_that_says_something() -> None:
    assert last_line(ERROR.format("model.lr: no")) == "error: model.lr: no"
    assert last_line("Traceback\nValueError: x\n\n=== attempt 2, fit, now, here\n") == "ValueError: x"
    assert last_line("\x1b[1mEpoch 1\x1b[0m\rEpoch 2: \x1b[31mbad\x1b[0m\n") == "Epoch 2: bad"
    assert len(last_line("x" * 1000)) < 400
    assert last_line("") == ""
    assert classify(-signal.SIGSEGV, "").message == "ended by SIGSEGV"
    assert classify(3, "odd").message == "exit status 3: odd"


@pytest.mark.parametrize(
    ("kind", "progressed", "retried"),
    [
        (Kind.CONFIGURATION, True, 0),
        (Kind.OUT_OF_MEMORY, True, 0),
        (Kind.DIVERGENCE, True, 0),
        (Kind.DISK, True, 0),
        (Kind.CRASH, True, 1),
        (Kind.TIMEOUT, True, 100),
        (Kind.TIMEOUT, False, 0),
        (Kind.NODE, False, 3),
        (Kind.PREEMPTION, False, 3),
        (Kind.PREEMPTION, True, 100),
        (Kind.NODE, True, 100),
    ],
)
def test_a_retry_is_made_where_it_can_help(kind: Kind, progressed: bool, retried: int) -> None:
    failure = Failure(kind, "x", None, progressed)
    failures = tries = 0
    while tries < 100:
        failures += counts(failure)
        if not worth_retrying(failure, failures, retries=3):
            break
        tries += 1
    assert tries == retried
    assert not worth_retrying(failure, 1, retries=0)


def test_a_failure_is_kept_as_it_was() -> None:
    failure = Failure(Kind.DIVERGENCE, "error: ∇", -6, True)
    assert Failure.from_json(failure.to_json()) == failure


def test_errors_of_the_file_system() -> None:
    assert of_error(OSError(errno.ENOSPC, "No space left on device")).kind is Kind.DISK
    assert of_error(OSError(errno.EROFS, "Read-only file system")).kind is Kind.DISK
    assert of_error(OSError(errno.ESTALE, "Stale file handle")).kind is Kind.NODE
