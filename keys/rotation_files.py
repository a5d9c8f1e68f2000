"""The files of rotation and revocation: changed by one process at a time, in an order that survives a kill."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from variegate.keys import signing
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import PUBLIC, check_new, clear_leftovers, held, read_capped, write_atomic
from variegate.keys.rotation import Revocations, follow, hand_over
from variegate.keys.seller import SellerKeys
from variegate.keys.signing import SellerRoot
from variegate.keys.uri import Passphrase, file_path, is_hsm, next_seller, open_seller


class Rotated(NamedTuple):
    """A rotation with all its files.

    Attributes:
        seller: The new keys.
        resumed: Whether they had been made before, by a command that was stopped or that had done everything.
    """

    seller: SellerKeys
    resumed: bool


def extend(path: Path, seller: SellerKeys, ueids: Iterable[bytes]) -> Revocations:
    """Adds devices to a revocation list, or begins it.

    Args:
        path: The list.
        seller: The seller who rotates.
        ueids: The devices.

    Returns:
        The list as it is now.

    Raises:
        MisuseError: A ueid has the wrong length, the list is full, or its folder cannot be used.
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`: the file is no list of this seller's.
        DeviceError: Storage failed.
    """
    path = _where_it_lies(path)
    with held(path.parent):
        clear_leftovers(path)
        there = path.exists()
        before = _verified(path, seller.root) if there else Revocations()
        after = before.extended(ueids)
        write_atomic(path, after.sign(seller.signer), mode=PUBLIC, overwrite=there)
    return after


def rotate(
    old: SellerKeys, out: str, passphrase: Passphrase, *, statement: Path, revoked: Path | None = None
) -> Rotated:
    """Makes the next keys, the statement that hands over to them, and the revocation list under them.

    The order matters: a statement for keys that were never stored would hand the devices to nobody, and a list under
    unknown keys would be of no use. After a stop the same call continues: existing keys are accepted if they follow
    `old`, the statement if it hands over to them, the list if they have signed it.

    Args:
        old: The keys so far.
        out: Where the next shall live: a URI as for `uri.next_seller`.
        passphrase: For `out`.
        statement: The file of the statement.
        revoked: The revocation list, to be signed again with the new keys.

    Raises:
        MisuseError: A file is there already and does not belong to this rotation, or cannot be made, or as
            `uri.next_seller`.
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`: `revoked` is no list of this seller's; `KEY`, when a
            token refuses the PIN.
        DeviceError: Storage or the HSM failed.
    """
    new = _begun(old, out, passphrase)
    told = _is_told(old, new, statement)
    if revoked is not None:
        # Before anything is made; and looked at again below, when nobody else can change it.
        _verified(revoked, old.root, *(() if new is None else (new.root,)))
    resumed = new is not None
    if new is None:
        new, remove = next_seller(old, out, passphrase)
        try:
            _tell(old, new, statement)
        except BaseException:
            if not os.path.lexists(statement):
                remove()
            raise
    elif not told:
        _tell(old, new, statement)
    clear_leftovers(statement)
    if revoked is not None:
        _sign_again(revoked, old, new)
    return Rotated(new, resumed)


def _begun(old: SellerKeys, out: str, passphrase: Passphrase) -> SellerKeys | None:
    """The next keys, where they have been made before; None where nothing is there."""
    if is_hsm(out):
        try:
            seller = open_seller(out, passphrase)
        except MisuseError:
            return None  # making them reports other faults
    else:
        path = file_path(out)
        clear_leftovers(path)
        if not os.path.lexists(path):
            return None
        try:
            seller = open_seller(out, passphrase)
        except RefusedError:
            check_new(path)  # says that it is there
            raise
    # The master secret itself is not for comparing: an HSM does not give it out.
    if seller.serial != old.serial + 1 or seller.buyer_seed("variegate", 0) != old.buyer_seed("variegate", 0):
        raise MisuseError(f"{out} is there already", hint="it does not hold the next keys; choose another")
    return seller


def _is_told(old: SellerKeys, new: SellerKeys | None, statement: Path) -> bool:
    """Whether the statement is there; anything else in its place is refused."""
    if new is not None and statement.is_file():
        try:
            told = follow(old.root, old.serial, read_capped(statement, limit=signing.MAX_STATEMENT_BYTES))
        except RefusedError:
            pass
        else:
            if told == (new.root, new.serial):
                return True
    check_new(statement)
    return False


def _tell(old: SellerKeys, new: SellerKeys, statement: Path) -> None:
    write_atomic(statement, hand_over(old.signer, new.serial, new.root), mode=PUBLIC)


def _sign_again(path: Path, old: SellerKeys, new: SellerKeys) -> None:
    path = _where_it_lies(path)
    with held(path.parent):
        clear_leftovers(path)
        try:
            _verified(path, new.root)
        except RefusedError:
            revocations = _verified(path, old.root)
            write_atomic(path, revocations.extended([]).sign(new.signer), mode=PUBLIC, overwrite=True)


def _where_it_lies(path: Path) -> Path:
    """A list that a link names stays one list: it is held, read and replaced where it lies."""
    # A link to nothing is left as it is, and refused where a list would be made of it.
    return Path(os.path.realpath(path)) if os.path.exists(path) else path  # noqa: PTH110  never raises


def _verified(path: Path, *roots: SellerRoot) -> Revocations:
    """The list, under any of the roots. Whether a newer one exists is not known here: readers remember that."""
    data = read_capped(path, limit=signing.MAX_STATEMENT_BYTES)
    for root in roots[1:]:
        try:
            return Revocations.verify(data, root, 0)
        except RefusedError as error:
            if error.refusal is not Refusal.SIGNATURE:
                raise
    try:
        return Revocations.verify(data, roots[0], 0)
    except RefusedError as error:
        if error.refusal is Refusal.SIGNATURE:
            error.hint = "after a rotation, `variegate keys rotate` with --revoked signs the list again"
        raise
