"""Templates are untrusted: they are tried apart, sandboxed and limited."""

import subprocess
import sys

import pytest
from torchtune.data import ChatFormat, Message, auto_tokenizer
from torchtune.errors import ConfigError, DataError, MissingError

CHAT = [Message("user", "go"), Message("assistant", "Done.")]


@pytest.fixture
def make(chatml, tmp_path):
    def build(source):
        (tmp_path / "it.jinja").write_text(source)
        return ChatFormat(auto_tokenizer(chatml, str(tmp_path / "it.jinja")))

    return build


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "loops"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "prints without end"),
        ("{{ 'x' * 10 ** 12 }}", "prints without end"),
        (
            "{% set s = namespace(a='x') %}{% for i in range(99) %}{% set s.a = s.a ~ s.a %}{% endfor %}",
            "prints",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{% for m in %}", "line 1"),
        ("{{ messages | nonsense }}", "line 1: No filter named 'nonsense'"),
        ("{{ cycler.__init__.__globals__.os.system('touch gone') }}{{ 1 / 0 }}", None),
    ],
)
def test_an_unruly_template_is_one_clear_error(make, source, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=fault) as caught:
        make(source).encode(CHAT)
    assert len(str(caught.value).splitlines()) <= 3
    assert caught.value.exit_code == (2 if fault else 4)
    assert not (tmp_path / "gone").exists()


@pytest.mark.slow  # it computes until the processor time of a trial is spent, 3 s
def test_a_template_that_computes_without_end_is_stopped(make):
    with pytest.raises(ConfigError, match="does not end"):
        make("{{ (7 ** (10 ** 8)) % 3 }}")


def test_a_template_that_loops_only_on_some_rows_is_stopped_too(make):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    form = make(
        "{% for m in messages %}{{ m.content }}{% if m.content == 'go' %}"
        + loop
        + "{% endif %}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="loops without end"):
        form.encode(CHAT)


def test_trying_a_template_runs_nothing_of_the_users_program(chatml, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "print('started')\n"
        "import sys\n"
        "from torchtune.data import ChatFormat, auto_tokenizer\n"
        "ChatFormat(auto_tokenizer(sys.argv[1]))\n"
    )
    command = [sys.executable, str(program), str(chatml)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "started\n"


def test_unknown_templates_name_the_built_in_ones(chatml):
    with pytest.raises(MissingError, match="alpaca, chatml, llama2, llama3, zephyr"):
        auto_tokenizer(chatml, "lama3")


def test_a_built_in_template_wants_its_tokens(chatml):
    with pytest.raises(ConfigError, match=r"<\|start_header_id\|>"):
        ChatFormat(auto_tokenizer(chatml, "llama3"))
