"""Create an object once, and know for certain whose it is.

A store may lose its answer, refuse for a moment (409), or call our own write "somebody else's" after a
retry inside its client. So after anything but a plain yes the object is looked at again: the stamp it
carries, or its bytes where the store keeps no stamps. Nothing is ever cleaned up on a guess.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
from typing import TYPE_CHECKING, Any

from batchinfer.errors import UnavailableError
from batchinfer.storage import AlreadyExists, ObjectMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchinfer.storage import Store

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 20.0


class Outcome(enum.Enum):
    """What stands under the name now."""

    WON = "ours"
    SAME = "another writer's, with the same bytes"
    OTHER = "another writer's, with other bytes"


def sha256(data: Any) -> str:
    """Return the hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def new_attempt() -> str:
    """Return a name that no other attempt has."""
    return secrets.token_hex(8)


def publish(
    store: Store,
    uri: str,
    data: Any,
    *,
    stamp: Mapping[str, str] | None = None,
    look_first: bool = False,
) -> Outcome:
    """Create an object and make sure of the outcome. `stamp` names the `attempt` and the `sha256`.

    `look_first` is for stores whose `create` may overwrite. Raises UnavailableError when the store
    stays silent or unclear for `store.patience_s`; what is there is then left as it is.
    """
    clock = store.clock
    marks = {**(stamp or {})}
    marks.setdefault("sha256", sha256(data))
    began, wait_s = clock.now(), _FIRST_WAIT_S
    doubt = False
    while True:
        unclear = UnavailableError(
            "the store says that the name is taken, and shows nothing there", where=uri
        )
        try:
            if look_first:
                return _whose(store, uri, marks, doubt=doubt)
        except ObjectMissing:
            pass
        try:
            store.create(uri, data, stamp=marks)
        except AlreadyExists:
            pass
        except UnavailableError as error:
            unclear, doubt = error, True
        else:
            return Outcome.WON
        try:
            return _whose(store, uri, marks, doubt=doubt)
        except ObjectMissing:
            pass  # never written, or refused for the moment: try again
        except UnavailableError as error:
            unclear = error
        # Full jitter, so that many writers of a throttled store do not come back together.
        pause_s = secrets.SystemRandom().uniform(0, wait_s)
        if clock.now() + pause_s - began > store.patience_s:
            raise unclear
        clock.sleep(pause_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def create_once(store: Store, uri: str, data: Any) -> bool:
    """Create a control object: True if what is there now has our bytes. Raises UnavailableError."""
    return publish(store, uri, data) is not Outcome.OTHER


def _whose(store: Store, uri: str, marks: Mapping[str, str], *, doubt: bool) -> Outcome:
    """Say whose object is there. Raises ObjectMissing, UnavailableError.

    `doubt`: an earlier try of ours may have been applied.
    """
    found = store.stamp(uri)
    if "attempt" in found and "attempt" in marks:
        if found["attempt"] == marks["attempt"]:
            return Outcome.WON
        return Outcome.SAME if found.get("sha256") == marks["sha256"] else Outcome.OTHER
    if sha256(store.read(uri)) != marks["sha256"]:
        return Outcome.OTHER
    return Outcome.WON if doubt else Outcome.SAME
