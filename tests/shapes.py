"""The checker of every annotation while tests run: beartype, with ints accepted as floats."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
