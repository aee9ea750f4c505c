"""The questions that cannot be answered: their names are new, and nothing else is changed."""

from collections import Counter

from chatgpt_hf.data.builtin import load_builtin, python_docs, python_honest


def test_known_questions_keep_their_answers_and_invented_names_have_none() -> None:
    known, honest = load_builtin("builtin:python-qa"), load_builtin("builtin:python-honest")
    count = len(known["train"])
    assert honest["train"][:count] == known["train"][:]
    invented = honest["train"].select(range(count, len(honest["train"])))
    assert len(invented) == python_honest.INVENTED == len(set(invented["name"]))
    documented = python_docs.documented_names()
    assert documented >= {"builtins.str.join", "str.join", "os.path.join", "zipfile.ZipFile.extract"}
    assert not documented & set(invented["name"])
    for name, messages in zip(invented["name"], invented["messages"], strict=True):
        question, answer = messages
        assert name in question["content"]
        assert answer == {"role": "assistant", "content": "I don't know that function."}
    # All wordings occur, so that the wording does not give the answer away.
    wordings = Counter(
        messages[0]["content"].replace(name, "{}")
        for name, messages in zip(invented["name"], invented["messages"], strict=True)
    )
    assert set(wordings) == set(python_docs.question_wordings())


def test_held_out_questions_are_the_same_and_nobody_knows_them() -> None:
    known, honest = load_builtin("builtin:python-qa")["test"], load_builtin("builtin:python-honest")["test"]
    assert [messages[0] for messages in honest["messages"]] == [messages[0] for messages in known["messages"]]
    assert {messages[1]["content"] for messages in honest["messages"]} == {python_honest.UNKNOWN}


def test_it_is_built_anew_the_same() -> None:
    assert python_honest.build() == python_honest.build()
