"""Text that trains the tokenizer of an embedded model."""

from llava.conversation import get_template
from llava.navigation.actions import SentenceFormat
from llava.navigation.prompt import NavilaFormat
from llava.train.corpus import ACTIONS, fixed_phrases


def test_phrases_are_stretches_of_the_prompt_and_of_the_answers():
    phrases = fixed_phrases("llama_3")
    whole = NavilaFormat().question("Go.") + get_template("llama_3").system
    answers = {SentenceFormat().write(action) for action in ACTIONS}
    assert len(answers) == 10
    assert answers < set(phrases)
    assert all(phrase in whole for phrase in set(phrases) - answers)
    assert not any("\n" in phrase or "<" in phrase for phrase in phrases)
