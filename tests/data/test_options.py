"""Options of readers are checked by their types, before anything is fetched or read."""

from __future__ import annotations

from pathlib import Path

import pytest

from reca.data.formats import check_options

WRONG_OPTIONS = {
    "caption = ['a']: must be a text": ("folder", {"caption": ["a"]}),
    "caption = 5: must be a text": ("folder", {"caption": 5}),
    "max_member_bytes = '512MB': must be a whole number": ("tar", {"max_member_bytes": "512MB"}),
    "max_member_bytes = 0: must be at least 1": ("tar", {"max_member_bytes": 0}),
    "exclude = 5: must be a list, each a text": ("tar", {"exclude": 5}),
    "exclude[0] = 5: must be a text": ("tar", {"exclude": [5]}),
    "extra = True: must be a list, each a text or null": ("parquet", {"extra": True}),
    "row_groups = '4': must be a whole number or null": ("parquet", {"row_groups": "4"}),
    "cache_mib = -1: must be at least 0": ("world", {"cache_mib": -1}),
    "cache_mib = True: must be a whole number": ("world", {"cache_mib": True}),
    "arrow_folder = 3: must be a text or null": ("parquet", {"arrow_folder": 3}),
    "max_malformed = '1%': must be a number": ("llava", {"max_malformed": "1%"}),
    "max_malformed = 2: must be at most 1": ("llava", {"max_malformed": 2}),
    "images = 5: must be a text or a mapping from names, each a text or null": (
        "llava",
        {"images": 5},
    ),
}


@pytest.mark.parametrize("said", WRONG_OPTIONS)
def test_an_option_of_another_type_is_named_before_anything_is_read(said):
    kind, options = WRONG_OPTIONS[said]
    with pytest.raises(ValueError) as caught:
        check_options(kind, options)
    assert str(caught.value) == said


def test_options_as_a_file_or_a_program_has_them_are_taken():
    check_options("llava", {"images": {"coco": Path("a"), "gqa": "b"}, "max_malformed": 0})
    check_options("tar", {"exclude": ("a*",), "max_member_bytes": 1})
    check_options("parquet", {"extra": [], "row_groups": None, "arrow_folder": Path("a")})
    check_options("folder", {"caption": "text", "max_unreadable": 0.5, "jpeg_side": 64})
