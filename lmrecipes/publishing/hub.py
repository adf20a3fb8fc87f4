"""The hub: the one file that knows how a folder gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmrecipes.problems import InputError, Problem

PATIENCE = 10.0
"""Seconds to wait for the hub's first answer."""


def open_hub(repository: str) -> Any:
    """An `HfApi` that may write. Raises InputError, within seconds, where OWNER/NAME cannot be pushed to: a wrong name,
    offline, no token or a wrong one, no answer."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise _problem(str(error).partition("\n")[0], "name it OWNER/NAME") from None
    if repository.count("/") != 1:
        raise _problem(f"{repository!r} does not say whose it is", "name it OWNER/NAME")
    if constants.is_offline_mode():
        raise _problem("HF_HUB_OFFLINE is set", "unset it, on a machine with a network")
    if (token := get_token()) is None:
        raise _problem("no token for the hub", "run `hf auth login`, or set HF_TOKEN to one with write access")
    api = HfApi(token=token)
    try:
        headers = build_hf_headers(token=token)
        hf_raise_for_status(get_session().get(f"{api.endpoint}/api/whoami-v2", headers=headers, timeout=PATIENCE))
    except HTTPError as error:
        raise _refused(error, f"{api.endpoint} cannot be used") from None
    return api


def push(api: Any, folder: Path, repository: str, private: bool) -> str:
    """Make the repository where there is none, upload a folder in one commit; returns its address.

    Raises InputError where the hub refuses; nothing of a commit is seen before it is complete.
    """
    from huggingface_hub.errors import HTTPError

    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model by lmrecipes")
    except HTTPError as error:
        raise _refused(error, f"{repository} was not written") from None
    return str(address)


def _refused(error: Exception, what: str) -> InputError:
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    fixes = {
        None: "check the network (HTTPS_PROXY, HF_ENDPOINT), then push again",
        401: "run `hf auth login` again, or set HF_TOKEN to a valid token",
        403: "use a token with write access to that owner",
    }
    return _problem(f"{what}: {said}", fixes.get(status, "push again; the hub says what is wrong"))


def _problem(what: str, fix: str) -> InputError:
    return InputError(Problem("--push-to-hub", what, fix, "hub"))
