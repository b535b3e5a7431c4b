"""Names as people write them. Nothing here imports TensorFlow."""

import unicodedata


def nfc(name: str) -> str:
    """A name in Unicode's composed form: equal names are equal strings.

    Archives made on macOS hold é as e and an accent (NFD).
    """
    return unicodedata.normalize("NFC", name)
