"""What TensorFlow's errors say, as far as a person wants to know it."""

import re


def reason(error: Exception) -> str:
    """One line of an error's message, without the names of operations."""
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:.*", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What brought a collective operation down stands behind where it stood.
    found = [line for line in lines if "aborted by" in line]
    return (found or lines or [repr(error)])[0]
