"""A rerunnable study of how chest-x-ray foundation encoders improve with in-house data."""

import sys

# jsonschema imports this package if it can, which takes over a second for grammars unused here
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
