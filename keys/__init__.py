"""Keys, signatures, keyed streams and the sealed artefact. Imports nothing else of Variegate.

What most people call::

    from variegate import keys

    seller = keys.Seller.generate()
    seller.save(Path("seller.key"), "a long passphrase")
    root = seller.root.to_bytes()  # what devices pin
    acme = keys.DevicePublic.from_json(identity)  # as `variegate device identity` writes it

The formats are in this folder's README.
"""

from typing import TYPE_CHECKING

from variegate.keys.face import lazily

if TYPE_CHECKING:
    from variegate.keys.artefact import Artefact
    from variegate.keys.errors import VariegateError
    from variegate.keys.identity import DevicePublic
    from variegate.keys.seller import Seller
    from variegate.keys.signing import SellerRoot

__all__ = ["Artefact", "DevicePublic", "Seller", "SellerRoot", "VariegateError"]

__getattr__ = lazily(
    __name__,
    Artefact="variegate.keys.artefact",
    DevicePublic="variegate.keys.identity",
    Seller="variegate.keys.seller",
    SellerRoot="variegate.keys.signing",
    VariegateError="variegate.keys.errors",
)
