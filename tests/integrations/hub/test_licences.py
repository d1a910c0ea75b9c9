"""A licence comes from the base and is never made wider."""

from pathlib import Path

import pytest
from torchtune.errors import ConfigError
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.hub import prepare


@pytest.fixture
def licensed(tmp_path):
    """Write a model whose card has this head."""

    def write(head: str) -> Path:
        folder = tiny_checkpoint(tmp_path / "model")
        (folder / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
        return folder

    return write


@pytest.mark.parametrize(
    ("base", "asked"),
    [
        *(
            ("apache-2.0", "mit"),
            ("mit", "apache-2.0"),
            ("mit", "cc-by-nc-4.0"),
            ("cc0-1.0", "mit"),
        ),
        *(("llama3.2", "llama3.2"), ("gemma", "Gemma"), ("cc-by-nc-4.0", "cc-by-nc-4.0")),
    ],
)
def test_a_licence_that_is_not_wider_is_taken(licensed, base, asked):
    publication = prepare(licensed(f"license: {base}"), "me/llama-x", licence=asked)
    assert str(publication.licence) == asked.lower()
    publication.check()


@pytest.mark.parametrize(
    ("base", "asked"),
    [
        *(
            ("llama3.2", "apache-2.0"),
            ("llama3.2", "llama3.1"),
            ("gemma", "mit"),
            ("mit", "cc0-1.0"),
        ),
        *(
            ("cc-by-nc-4.0", "cc-by-4.0"),
            ("gpl-3.0", "mit"),
            ("other", "apache-2.0"),
            ("rail", "mit"),
        ),
    ],
)
def test_a_wider_licence_is_refused(licensed, base, asked):
    with pytest.raises(ConfigError, match=f"E-LICENCE.*'{base}'[^$]*keep the base's"):
        prepare(licensed(f"license: {base}"), "me/x", licence=asked)


def test_a_wider_licence_in_a_card_is_refused_too(licensed, tmp_path):
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    with pytest.raises(ConfigError, match=r"E-LICENCE.*\n.*card.md: license"):
        prepare(licensed("license: llama3.2"), "me/x", card=tmp_path / "card.md")


def test_a_licence_of_its_own_keeps_name_and_link(licensed):
    folder = licensed("license: other\nlicense_name: tiny-licence\nlicense_link: LICENSE")
    (folder / "LICENSE").write_text("text")
    publication = prepare(folder, "me/x")
    assert "license: other\nlicense_name: tiny-licence\nlicense_link: LICENSE\n" in publication.card
    assert publication.files["LICENSE"] == folder.resolve() / "LICENSE"


def test_a_link_to_a_file_that_stays_behind_leads_to_the_base(licensed):
    folder = licensed("license: other\nlicense_name: x\nlicense_link: TERMS.md")
    card = prepare(folder, "me/x", base_model="acme/base").card
    assert "license_link: https://huggingface.co/acme/base/blob/main/TERMS.md" in card


def test_an_unknown_licence_stops_a_public_push_only(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    public, private = prepare(folder, "me/x"), prepare(folder, "me/x", private=True)
    assert "licence: **To be written by the author:** not set yet" in public.card
    with pytest.raises(ConfigError, match=r"E-LICENCE[^$]*--license ID"):
        public.check()
    private.check()
    prepare(folder, "me/x", licence="mit").check()


def test_llama_is_named_where_its_licence_asks_for_it(licensed):
    publication = prepare(licensed("license: llama3.2"), "me/tuned")
    assert "Built with Llama. Llama 3.2 is licensed under" in publication.card
    assert any("to begin with Llama" in note for note in publication.notes())
    named = prepare(licensed("license: llama3.2"), "me/Llama-tuned").notes()
    assert not any("to begin with Llama" in note for note in named)


@pytest.mark.parametrize(
    ("head", "message"), [("license: [mit", "not YAML"), ("just words", "holds no fields")]
)
def test_a_head_that_cannot_be_read_is_named(tmp_path, head, message):
    (tmp_path / "card.md").write_text(f"---\n{head}\n---\n")
    with pytest.raises(ConfigError, match=rf"E-CARD.*{message}[^$]*card.md"):
        prepare(tiny_checkpoint(tmp_path / "m"), "me/x", card=tmp_path / "card.md")
