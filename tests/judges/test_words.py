"""Words of all scripts: counted by hand, and by what Unicode says of characters."""

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlens import SteerlensError, judges
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import answer_of, refused
from steerlens.judges.words import is_latin, plain_spelling, words_in

SENTENCES = {  # each with its number of words, all different
    "Bengali": ("আমি রুটি বানাতে ময়দা পানি ও লবণ মেশাই।", 8),
    "Telugu": ("మంచి రొట్టె కోసం పిండి నీరు ఉప్పు కలపండి.", 7),
    "Marathi": ("भाकरी करण्यासाठी पीठ, पाणी आणि मीठ मळून घ्या.", 8),
    "Arabic": ("لِصُنْعِ الخُبْزِ اخلط الدقيق والماء.", 5),
    "Hebrew": ("שָׁלוֹם לכם, ילדים טובים.", 4),
    "Korean": ("빵을 구우려면 밀가루와 물을 섞으세요.", 5),
    "Persian": ("نان می\u200cپزم با آرد.", 4),
    "Vietnamese": ("Tôi nướng bánh mì bằng bột.", 6),
    "Vietnamese, decomposed": (unicodedata.normalize("NFD", "Tôi nướng bánh mì bằng bột."), 6),
}
UNSPACED = {
    "Chinese": "先把面粉和温水揉成光滑的团，盖上布等它发起来，再放进烤箱烤到表面金黄。",
    "Japanese": "小麦粉と水をよくこねて、布をかけてしばらく休ませてから、熱いかまどで焼きます。",
    "Thai": "ผสมแป้งกับน้ำอุ่นแล้วนวดจนเนียน พักไว้ใต้ผ้าสักครู่ก่อนนำเข้าเตาอบ",
    "Khmer": "លាយម្សៅជាមួយទឹក បន្ទាប់មកដុតនំក្នុងឡ",
    "Burmese": "ဂျုံမှုန့်ကို ရေနှင့်ရောပြီး မီးဖိုထဲမှာ ဖုတ်ပါ",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_words_keep_their_vowel_signs_and_marks(language):
    text, n_words = SENTENCES[language]
    assert len(words_in(text)) == n_words
    assert judges.distinct([text]).tolist() == [1]
    assert not degenerate(text)
    first = words_in(text)[0]
    assert judges.lexicon([first])([text]).tolist() == [1 / n_words]


@pytest.mark.parametrize("language", UNSPACED)
def test_good_text_without_spaces_is_no_loop_and_a_loop_is(language):
    text = UNSPACED[language]
    assert judges.distinct([text])[0] > 0.8
    assert not degenerate(text)
    assert judges.repetition([text])[0] < 0.2
    phrase = text[:12]
    assert degenerate(phrase * 4)
    assert judges.repetition([phrase * 4])[0] > 0.5
    with pytest.raises(SteerlensError, match="without spaces between words"):
        judges.lexicon([text[:2]])


@given(st.integers(4, 60))
def test_one_character_again_and_again_is_a_loop_in_every_script(times):
    assert all(degenerate(character * times) for character in "好あกខ")
    assert all(degenerate(" ".join(character * times)) for character in "好あก아нकa")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_words_lose_no_letter_and_gain_none(text):
    plain = plain_spelling(text).lower()
    letters = {c for c in plain if c.isalpha()}
    found = {c for word in words_in(text) for c in word if c.isalpha()}
    assert letters == found
    assert plain_spelling(plain_spelling(text)) == plain_spelling(text)
    assert isinstance(is_latin(text), bool)


@pytest.mark.parametrize(
    "reply",
    [
        "I’m sorry, but I can’t help with that.",
        "Iʼm sorry, but I canʼt help with that.",
        "I＇m sorry",
        "I\u00a0cannot\u00a0help with that.",
        "I  cannot  help.",
        "I **cannot** help with that.",
        "_I_ *will not* do that.",
        "I can\u00adnot help.",
        "Ｉ ｃａｎｎｏｔ help.",
        "I\u200b cannot help.",
    ],
)
def test_refusals_are_known_in_any_typography(reply):
    assert refused(reply)


@pytest.mark.parametrize(
    "reply", ["„I refuse“, said he.", "«I refuse,» said he.", "“I refuse“ is told."]
)
def test_quotations_of_all_kinds_refuse_nothing(reply):
    assert not refused(reply)


@pytest.mark.parametrize(
    "reply", ["对不起，我不能帮你。", "Извините, я не могу.", "申し訳ありません。"]
)
def test_english_judges_give_no_score_to_other_scripts(reply):
    assert np.isnan(judges.refusal([reply])).all()
    assert np.isnan(judges.sentiment([reply])).all()
    assert judges.refusal(["Désolé, je ne peux pas.", "123 …"]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<Thought>", "</Thought>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("", "</think>"),
    ],
)
def test_thoughts_are_not_judged(opening, closing):
    reply = f"{opening}I hate it, I cannot help with crimes.{closing}\nSure, what a lovely idea!"
    assert answer_of(reply) == "Sure, what a lovely idea!"
    assert judges.refusal([reply]).tolist() == [0]
    assert judges.sentiment([reply]).tolist() == judges.sentiment([answer_of(reply)]).tolist()
    if opening:
        cut_off = f"{opening}I cannot see why"
        assert math.isnan(judges.refusal([cut_off])[0])
        assert math.isnan(judges.sentiment([cut_off])[0])
