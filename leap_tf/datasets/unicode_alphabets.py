"""TFDS builder of `unicode_alphabets`: real alphabets in Omniglot's format, drawn at first use.

An alphabet is a script, or a part of one, of which DejaVu Sans has at least 20 letters. Of larger
scripts the first 26 letters are used, or those listed, so that alphabets have similar sizes. No
letter is in two alphabets. Letters that differ from another of their alphabet in size or position
only are left out, for example Hebrew vav (like yod) and Tifinagh ya (like yar).
"""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from leap_tf.datasets import glyphs

LETTERS = {
    # Without alef, a bare stroke, and heh, a ring.
    "Arabic": "0628 062A-063A 0641-0646 0648 064A",
    # Persian, Urdu, Pashto, Kurdish, Sindhi, Uyghur and others, where the shapes differ clearly.
    "Arabic_Extended": "0679 067C 067E 0681 0686 0688 0689 0691 0693 0695 0698 069A 069C 069F"
    " 06A0 06A4 06A9 06AB 06AD 06B3 06B5 06BC 06BE 06C6 06CE 06D0",
    # The letters that join to the left, in their form at the start of a word.
    "Arabic_Initial": "FE91 FE97 FE9B FE9F FEA3 FEA7 FEB3 FEB7 FEBB FEBF FEC3 FEC7 FECB FECF"
    " FED3 FED7 FEDB FEDF FEE3 FEE7 FEEB FEF3",
    "Armenian_Capital": "0531-054A",
    "Armenian_Small": "0561-057A",
    # Six series of four: the bare vowels, p, t, k, c and m before e, i, o and a.
    "Canadian_Syllabics_Cree": "1401 1403 1405 140A 142F 1431 1433 1438 144C 144E 1450 1455"
    " 146B 146D 146F 1472 1489 148B 148D 1490 14A3 14A5 14A7 14AA",
    # Six series of four: tt, Slavey k, sh, th, Woods Cree th and western r.
    "Canadian_Syllabics_Dene": "1467-146A 1485-1488 1510 1511 1513 1515 155E 1560 1564 1566"
    " 15A7 15A8 15AA 15AC 158A-158D",
    # Eight series of three: n, l, s, y, r, f, q and lh before i, o and a.
    "Canadian_Syllabics_Inuktitut": "14C2 14C4 14C7 14D5 14D7 14DA 14EF 14F1 14F4"
    " 1528 152A 152D 1546 1548 154B 1555 1557 1559 157F 1581 1583 15A0 15A2 15A4",
    "Cyrillic_Capital": "0410-0429",
    # Letters that Tatar, Bashkir, Kazakh, Abkhaz, Komi and others add to the Russian ones.
    "Cyrillic_Extended": "0490 0494 0496 0498 049A 04A2 04A4 04A6 04A8 04AA 04AC 04AE 04B4 04B6"
    " 04BA 04BC 04C3 04D4 04D8 04E0 0500 0502 0504 0506 050A 050C",
    # Serbian, Ukrainian and Church Slavonic capitals that Russian does not have.
    "Cyrillic_Slavonic": "0402 0404 0409 040A 040B 040F 0460 0462 0464 0466 0468 046A 046C 046E"
    " 0470 0472 0474 0478 0480 A644 A646 A650 A656 A662 A66A A66E",
    "Cyrillic_Small": "0430-0449",
    "Georgian_Asomtavruli": "10A0-10B9",
    "Georgian_Mkhedruli": "10D0-10E9",
    "Georgian_Nuskhuri": "2D00-2D19",
    "Greek_Capital": "0391-03A1 03A3-03A9",
    "Greek_Small": "03B1-03C9",
    # Without vav and final nun.
    "Hebrew": "05D0-05D4 05D6-05DE 05E0-05EA",
    # The consonants without fo sung.
    "Lao": "0E81 0E82 0E84 0E87 0E88 0E8A 0E8D 0E94-0E97 0E99-0E9E 0EA1-0EA3 0EA5 0EA7 0EAA"
    " 0EAB 0EAD 0EAE",
    # Capitals of the African reference alphabet and its relatives.
    "Latin_African": "0181 0186 0187 0189 018A 018E 018F 0190 0191 0193 0194 0196-0198 019C 019D"
    " 019F 01A4 01A9 01AC 01B1-01B3 01B5 01B7 0241",
    "Latin_Capital": "0041-005A",
    # Capitals from manuscripts: Old English, Old Norse, Mayan, Egyptological.
    "Latin_Medieval": "00C6 00D0 00DE 0152 01F6 01F7 021C 0222 A722 A724 A726 A728 A72A A732"
    " A734 A736 A738 A73C A73E A740 A746 A74A A74E A750 A756 A782",
    # The International Phonetic Alphabet: first most vowels, then more consonants and clicks.
    "Latin_Phonetic_1": "0250-0263 0265-026A",
    "Latin_Phonetic_2": "0280-0283 0286-0295 0297 0298 029A 029B 029D 029E",
    "Latin_Small": "0061-007A",
    "Lisu": "A4D0-A4E9",
    "NKo": "07CB-07E4",
    "Ogham": "1681-169A",
    # Without he, which looks like be.
    "Old_Italic": "10300-10306 10308-1031A",
    # The letters of Moroccan schools, without ya, yan, yatt, yay and yazz.
    "Tifinagh": "2D31 2D33 2D37 2D39 2D3B-2D3D 2D40 2D43-2D45 2D47 2D49 2D4A 2D4D 2D4E 2D53-2D56"
    " 2D59-2D5C 2D61 2D63",
    # Tuareg and Berber Academy letters.
    "Tifinagh_Regional": "2D32 2D34-2D36 2D38 2D3A 2D3E 2D3F 2D41 2D42 2D46 2D48 2D4B 2D4C"
    " 2D50-2D52 2D57 2D58 2D5D 2D5E 2D60 2D64",
}


def characters(letters: str) -> tuple[str, ...]:
    """Returns the characters of hexadecimal code points and ranges, both ends included.

    >>> characters("0041-0043 00C6")
    ('A', 'B', 'C', 'Æ')
    """
    ends = [part.partition("-")[::2] for part in letters.split()]
    return tuple(
        chr(point)
        for first, last in ends
        for point in range(int(first, 16), int(last or first, 16) + 1)
    )


ALPHABETS = {name: characters(letters) for name, letters in LETTERS.items()}


class UnicodeAlphabets(tfds.core.GeneratorBasedBuilder):
    """Alphabets drawn from fonts, in the format of `tfds.image_classification.Omniglot`.

    The only split is `train`. The name of a label is the name of the alphabet, an underscore and
    the character. Labels and alphabets are numbered in the order of `ALPHABETS`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(glyphs.CANVAS, glyphs.CANVAS, 3), encoding_format="png")
        labels = [f"{name}_{letter}" for name, letters in ALPHABETS.items() for letter in letters]
        return tfds.core.DatasetInfo(
            builder=self,
            description="""\
            Characters of the alphabets that the DejaVu fonts cover, drawn by 20 simulated drawers.
            The features are those of Omniglot. Nothing is downloaded: the drawings are made from
            the fonts that matplotlib installs, and are the same for the same versions of matplotlib
            and Pillow.
            """,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "alphabet": tfds.features.ClassLabel(names=list(ALPHABETS)),
                    "alphabet_char_id": np.int64,
                    "label": tfds.features.ClassLabel(names=labels),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://dejavu-fonts.github.io",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for alphabet, characters in ALPHABETS.items():
            for number, character in enumerate(characters):
                for drawer in range(glyphs.DRAWERS):
                    ink = glyphs.draw(character, drawer)
                    paper = np.where(ink, np.uint8(0), np.uint8(255))
                    yield (
                        f"{alphabet}_{number}_{drawer}",
                        {
                            "image": np.repeat(paper[:, :, np.newaxis], 3, axis=2),
                            "alphabet": alphabet,
                            "alphabet_char_id": number,
                            "label": f"{alphabet}_{character}",
                        },
                    )
