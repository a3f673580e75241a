"""The Hugging Face Hub: whether it is there, and why a model could not be had from it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

from ctxext.errors import short

REACH = 5.0  # seconds for the Hub to answer at all


@contextlib.contextmanager
def hub_client(progress: bool) -> Iterator[None]:
    """huggingface_hub leaves its errors to us, and shows progress only to who can watch it.

    Args:
        progress: whether it shows any.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    hidden, level = are_progress_bars_disabled(), logging.get_verbosity()
    shown = progress and sys.stderr.isatty()
    (enable_progress_bars if shown else disable_progress_bars)()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        (disable_progress_bars if hidden else enable_progress_bars)()


@functools.cache
def why_offline() -> str | None:
    """Why the Hub cannot be asked, in a few words; None where it answers.

    It is tried once. Where it does not answer, huggingface_hub and datasets take what is in their
    caches from then on, and try no more.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH)
    except Exception as error:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        why = short(causes(error)[-1], 120)
        return f"there is no network: {constants.ENDPOINT} does not answer ({why})"
    return None


def refusal(error: BaseException, hub_id: str, gated: bool, offline: str | None) -> str:
    """Why a model could not be had from the Hub, and what to do, in one line.

    Args:
        gated: whether its licence is known to have to be accepted.
        offline: why the Hub was not asked.
    """
    from huggingface_hub import errors as hub

    chain = causes(error)
    get = f"download it where there is a network (`hf download {hub_id}`) and give the folder"
    page = f"https://huggingface.co/{hub_id}"
    log_in = f"accept its licence at {page} and log in with `hf auth login`"
    if offline is not None:
        why = short(error, 250)
        return f"could not be had from the Hub: {offline}; offline, {get} ({why})"
    if any(isinstance(e, hub.GatedRepoError) for e in chain):
        return f"is gated: {log_in}"
    if any(isinstance(e, hub.RevisionNotFoundError) for e in chain):
        return "has no such --revision: give a branch, tag or commit of it"
    if any(isinstance(e, hub.RepositoryNotFoundError) for e in chain):
        if gated:
            return f"is gated: {log_in}"
        return "is not on the Hub, or is private: look at the name, or log in with `hf auth login`"
    said = next((s for e in chain if (s := getattr(e, "server_message", None))), None)
    why = short(said or error, 250)
    return f"could not be had from the Hub: look at the reason, or {get} ({why})"


def causes(error: BaseException | None) -> list[BaseException]:
    """An error and what led to it, the latest first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
