"""Templates that would take hours or gigabytes end after a counted amount of work; templates of real models are not touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from jinja2 import Environment
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from chatgpt_hf import bounded_templates, chat_templates, train_tokenizer
from chatgpt_hf.bounded_templates import BoundedEnvironment, budget
from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.errors import DataError, TemplateTimeout

CHAT = [{"role": "user", "content": "Hi"}]
LOOP = "{% for a in range(99999) %}"
END = "{% endfor %}"
GROW = "{% set ns = namespace(x='a' * 1000, l=['a']) %}{% for i in range(60) %}%s{% endfor %}{{ ns.x|length }}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["a b c"], 270, show_progress=False)


@pytest.fixture
def render(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    # Only counting may end a template here.
    monkeypatch.setattr(chat_templates, "RENDER_SECONDS", 800)
    monkeypatch.setattr(bounded_templates, "MOST_STEPS", 300_000)

    def run(template: str) -> Any:
        tokenizer.chat_template = template
        return encode_chat_prompt(tokenizer, CHAT)

    return run


@pytest.mark.parametrize(
    "template",
    [
        LOOP * 2 + END * 2,
        LOOP * 9 + "x" + END * 9,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "{% macro f(n) %}{% for i in range(99) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ f(99) }}",
        "{% for i in [1, 2] recursive %}{% if loop.depth < 99 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        LOOP + "{{ range(99999)|list|length }}" + END + LOOP + "{{ range(99999)|list|length }}" + END,
        LOOP + "{{ messages|tojson }}" * 50 + END,
        LOOP + "x" * 100_000 + END,
        *(
            GROW.replace("%s", step)
            for step in (
                "{% set ns.x = ns.x ~ ns.x %}",
                "{% set ns.x = ns.x + ns.x %}",
                "{% set ns.x = [ns.x, ns.x]|join %}",
                "{% set ns.x = ''.join([ns.x, ns.x]) %}",
                "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
                "{% set ns.x = '{0}{0}'.format(ns.x) %}",
                "{% set ns.x = '%s%s'|format(ns.x, ns.x) %}",
                "{% set ns.x = ns.x.replace('a', 'aa') %}",
                "{% set ns.x = ns.x|replace('a', 'aa') %}",
                "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
                "{% set ns.l = ns.l + ns.l %}",
                "{% set ns.l = ns.l * 9 %}",
            )
        ),
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ 'a'|center(10 ** 10) }}",
        "{{ 'a'.rjust(10 ** 10) }}",
        "{{ 'a'.zfill(10 ** 10) }}",
        "{{ ('\t' * 999999).expandtabs(999999) }}",
        "{{ ('\n' * 999999)|indent(999999) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 10, 1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 10) }}",
        "{{ messages|tojson(indent=10 ** 10) }}",
        "{{ range(99999)|join('a' * 99999) }}",
        # Lists that contain one another many times are small until they become text, or are compared.
        *(
            "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}"
            "{% set ns.b = {'x': ns.b, 'y': ns.b} %}{% endfor %}" + use
            for use in (
                *("{{ ns.a }}", "{{ ns.a ~ '' }}", "{{ ns.b|string }}", "{{ ns.a|tojson }}", "{{ ns.b == ns.a }}"),
                *(
                    "{{ [ns.a]|join }}",
                    "{{ '%s' % ns.a }}",
                    "{{ '{}'.format(ns.b) }}",
                    "{{ [ns.a, ns.b]|unique|list }}",
                ),
            )
        ),
        # Whatever makes such values, and whatever reads them.
        *(
            "{% set ns = namespace(a=1, b=1) %}{% for i in range(26) %}" + step + END + use
            for step, use in (
                ("{% set ns.a = namespace(x=ns.a, y=ns.a) %}", "{{ ns.a }}"),
                ("{% set ns.a = namespace({'x': ns.a, 'y': ns.a}) %}", "{{ ns.a }}"),
                ("{% set ns.a = [ns, ns] %}", "{{ ns.a }}"),
                ("{% set ns.a = {'x': ns.a, 'y': ns.a} %}", "{{ ns.a.items() }}"),
                ("{% set ns.a = dict(x=ns.a, y=ns.a).values() %}", "{{ ns.a }}"),
                ("{% set ns.a = (ns.a, ns.a) %}", "{{ {ns.a: 1}|length }}"),
                ("{% set ns.a = (ns.a, ns.a) %}", "{{ messages[0][ns.a] }}"),
                ("{% set ns.a = [ns.a] * 3 %}", "{{ ns.a|length }}"),
                ("{% set ns.a = [ns.a] + [ns.a] %}", "{{ ns.a|length }}"),
                ("{% set ns.a = (ns.a, ns.a)|list %}", "{{ ns.a|length }}"),
                ("{% set ns.a = [ns.a]|batch(9, ns.a)|list %}", "{{ ns.a|length }}"),
                *(
                    ("{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}", use)
                    for use in (
                        *(
                            "{{ [ns.a].count(ns.b) }}",
                            "{{ ns.a is eq(ns.b) }}",
                            "{{ 1 in [ns.b] }}",
                            "{{ ns.a == ns.b }}",
                        ),
                        "{{ [ns.a]|select('eq', ns.b)|list|length }}",
                        "{% for i in [ns.a, ns.b] %}{{ loop.changed(i) }}{% endfor %}",
                    )
                ),
            )
        ),
        "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs is eq(varargs) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% set ns = namespace(a=1) %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a|length }}",
        # Operations whose time grows with a product.
        "{{ ('<!---->' * 99999)|striptags|length }}",
        "{{ ('a' * 999999).rfind('b' + 'a' * 99999) }}",
        "{{ ([[1]] * 99999)|sum(start=[])|length }}",
        "{% set x = 'a' * 999999 %}" + LOOP + "{% set y = 'b' in x %}" + END,
        "{% set x = 'a' * 999999 %}" + LOOP + "{% set y = x[1:] %}" + END,
        "{% set x = 'a' * 999999 %}" + LOOP + "{% set y = x.find('b') %}" + END,
    ],
)
def test_work_without_an_end(render: Callable[[str], Any], template: str) -> None:
    with pytest.raises(TemplateTimeout, match=r"loop for ever|too large|could grow"):
        render(template)


def test_what_is_not_there(render: Callable[[str], Any]) -> None:
    with pytest.raises(DataError, match="lipsum"):
        render("{{ lipsum(n=99999, max=99999) }}")


ORDINARY = """
{%- for m in messages if m.role != 'x' %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.revindex }}
{{- m.role ~ ': ' ~ m.content|trim ~ 5 ~ none }}{% else %}nobody{% endfor %}
{%- for k, v in {'a': 1, 'b': [1, 2]}.items() %}{{ k }}{{ v }}{% endfor %}{% for c in 'abc' %}{{ c }}{{ loop.nextitem }}{% endfor %}
{%- for i in range(3) recursive %}{{ i }}{{ loop(range(i)) if i > 1 }}{% endfor %}{% for n in nothing %}x{% endfor %}
{%- macro f(a, b=2) %}<{{ a * b }}{{ caller() if caller }}>{% endmacro %}{{ f('x') }}{% call f('y', b=3) %}z{% endcall %}
{%- set ns = namespace(x=0) %}{% for i in range(9) %}{% if i == 4 %}{% break %}{% endif %}{% set ns.x = ns.x + i ** 2 %}{% endfor %}{{ ns.x }}
{{ [3, 1]|sort|join(', ') }} {{ ['a']|map('upper')|join }} {{ '%s-%03d' % ('a', 7) }} {{ '{:>5}'.format('b') }} {{ 'a\nb'|indent(2) }}
{{ messages[::-1]|length }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ {'a': 'ü'}|tojson }} {{ 7 % 4 }}
{{ 'a,b'.split(',')[-1].strip().replace('b', 'cc') }} {{ missing }} {{ 'x' in 'xyz' }} {{ 1.5 * 2 }} {{ [1] + [2] }} {{ 'ab' * 2 }}
"""


def test_large_numbers_are_no_widths(render: Callable[[str], Any]) -> None:
    render(
        "{{ x|default(1700000000) }} {{ '%d' % 1700000000 }} {{ '20231201 %s' % 'x' }} {{ messages|batch(2)|list|length }}"
    )


def test_the_counters_change_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.loopcontrols"]}
    plain = ImmutableSandboxedEnvironment(**options).from_string(ORDINARY).render(messages=CHAT * 3)
    assert "1/3 False 3user: Hi5None" in plain
    with budget():
        assert BoundedEnvironment(**options).from_string(ORDINARY).render(messages=CHAT * 3) == plain
    # Without a budget, as where somebody else renders.
    assert BoundedEnvironment(**options).from_string(ORDINARY).render(messages=CHAT * 3) == plain
    assert BoundedEnvironment(**options).from_string(ORDINARY).render(messages=[])


def test_a_template_that_was_compiled_before(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = (
        "{% for i in range(40000) %}{% for j in range(9) %}{% endfor %}{% endfor %}before the limit"
    )
    monkeypatch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", ImmutableSandboxedEnvironment)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "before the limit"
    monkeypatch.setattr(bounded_templates, "MOST_STEPS", 300_000)
    with pytest.raises(TemplateTimeout):
        chat_templates._Rendering(tokenizer, CHAT, None).render()
    # Somebody else still renders it without a limit.
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "before the limit"


def test_a_long_conversation_is_far_from_the_limits(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every template that TRL ships, with 200 messages and a fiftieth of the steps."""
    monkeypatch.setattr(bounded_templates, "MOST_STEPS", bounded_templates.MOST_STEPS // 50)
    chat = [{"role": role, "content": "word " * 20} for _ in range(100) for role in ("user", "assistant")]
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        tokenizer.chat_template = file.read_text("utf-8")
        try:
            assert chat_templates._Rendering(tokenizer, chat, None).render().strip(), file.name
        except DataError as error:
            # Templates of models that see images take only lists of parts.
            if "no attribute" not in str(error):
                raise
    assert not isinstance(Environment(), BoundedEnvironment)
