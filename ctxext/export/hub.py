"""A folder → a repository on the Hugging Face Hub.

Only huggingface_hub reads the user's token: nothing here asks for it, and what its errors may
quote of it is struck out.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ctxext import __version__
from ctxext.errors import CtxextError, UsageError, short
from ctxext.system.hub import causes, hub_client

# Tokens, what follows "Bearer", the password in an address, and the signature of a signed one.
_SECRET = re.compile(
    r"""\b(?:hf|api_org)_\w*|(?<=Bearer\ )[^'"]*|(?<=://)[^/\s@]*(?=@)|(?<=\w\?)[^\s'"]*=[^\s'"]*""",
    re.VERBOSE,
)
_LONGEST = 250  # characters of what the Hub or the network had to say


def check_repository(name: str) -> str:
    """The name of a repository to push to; UsageError where the Hub knows no such names."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        if name.count("/") == 1 and name.isascii() and name.isprintable():
            return name
    except HFValidationError:
        pass
    raise UsageError(
        f"{name!r} is no name for a repository on the Hub: give ORG/NAME, such as me/llama-16k, "
        "each of up to 96 letters, digits, '-', '_' and '.', without '--' and '..', and neither "
        "'-' nor '.' first or last"
    )


def push(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload a folder as one commit to a repository, which is made if need be.

    Args:
        folder: what to upload; it stays as it is, whatever happens.
        repository: `ORG/NAME`.
        private: whether others must not see it. A repository that is there already is never
            changed in this; one that is public is refused.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        UsageError: a name that does not do.
        CtxextError: anything else; the message says why, and how to send the folder later.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="ctxext", library_version=__version__)
    check_repository(repository)
    try:
        with hub_client(progress=True):
            url = api.create_repo(repository, private=private or None, exist_ok=True)
            if private and not api.repo_info(repository).private:
                raise CtxextError(
                    "the repository is there already and public: make it private in its settings, "
                    "or give another name"
                )
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:
        again = f"hf upload {repository} {shlex.quote(str(folder))}"
        raise CtxextError(
            f"{str(folder)!r} is complete but not on the Hub as {repository}: "
            f"{_reason(error, repository)}; then send it with: {again}"
        ) from None  # the error may quote the token
    return _clean(str(url))


def _reason(error: Exception, repository: str) -> str:
    """Why a push failed and what to do, in one line."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    chain = causes(error)
    if isinstance(error, CtxextError):
        return str(error)
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return "the Hub is switched off here: unset HF_HUB_OFFLINE"
    answers = [r for e in chain if (r := getattr(e, "response", None)) is not None]
    status = answers[0].status_code if answers else 0
    if any(isinstance(e, LocalTokenNotFoundError) for e in chain):
        status = 401
    said = next((s for e in chain if (s := getattr(e, "server_message", None))), None)
    text = _clean(said or str(chain[-1] if status == 0 else error) or type(error).__name__)
    return f"{_advice(status, repository)} ({text})"


def _advice(status: int, repository: str) -> str:
    org = repository.partition("/")[0]
    known = {
        0: "the Hub could not be reached, or did not take it: look at the reason and the network",
        401: "not logged in, or the token is not valid: log in with `hf auth login`",
        403: f"the token may not write to {org}: log in with one that may, with `hf auth login`",
        404: f"there is no {org}, or the token may not see it: log in with `hf auth login`",
        409: "the repository was changed at the same time: wait a little",
        429: "too many requests: wait a little",
    }
    if status >= 500:
        return f"the Hub is in trouble (HTTP {status}): wait a little"
    return known.get(status, f"the Hub did not take it (HTTP {status})")


def _clean(text: str) -> str:
    """One printable line of bounded length without secrets."""
    line = short(_SECRET.sub("…", text), _LONGEST)
    return "".join(c if c.isprintable() else "?" for c in line)
