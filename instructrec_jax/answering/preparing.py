"""What `prepare` does with networks: it lets one reword examples, and another one know items by codes (semantic ids).

They are opened when they are needed, since the other forms of `prepare` need none of what is imported for them.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

from instructrec_jax.backbones.folder import find_folder
from instructrec_jax.backbones.wider_vocabulary import widen
from instructrec_jax.files import write_json, write_jsonl
from instructrec_jax.preparation.own_config import IdsConfig
from instructrec_jax.preparation.prepare_data import check_target, whole_or_nothing
from instructrec_jax.preparation.wording.alignment import alignment_examples
from instructrec_jax.preparation.wording.teacher import Teacher
from instructrec_jax.ranking.catalogue import Catalogue, Splits, has_splits
from instructrec_jax.ranking.semantic_ids import ENCODER, FOLDER, fit


def open_teacher(path: str) -> Teacher:
    """A language model that rewords training examples."""
    from instructrec_jax.answering.language_model import LanguageModel

    model = LanguageModel(path)
    return lambda prompts: [answer.text for answer in model.generate(prompts, progress=True)]


def prepare_ids(config: IdsConfig) -> dict[str, object]:
    """Writes the folder; returns its card. The same settings give the same bytes."""
    from instructrec_jax.runs.encoding import text_vectors

    out = Path(config.out).absolute()
    check_target(out, config.overwrite)
    network, catalogue = find_folder(config.network), Catalogue.load(config.catalogue)
    encoder = Path(config.encoder)
    found = str(encoder.absolute()) if encoder.exists() else config.encoder  # a hub id
    ids = fit(
        catalogue.ids,
        text_vectors(found, catalogue.texts),
        levels=config.levels,
        codes=config.codes,
        seed=config.seed,
        quantizer=config.quantizer,
    )
    card: dict[str, object] = {
        "catalogue": config.catalogue,
        "items": len(catalogue),
        "collisions": ids.collisions,
        "levels": ids.report(),
        "settings": {"encoder": config.encoder, "network": config.network, "seed": config.seed}
        | {"quantizer": config.quantizer},
    }

    def write(folder: Path) -> dict[str, object]:
        widen(network, ids.tokens, folder, config.seed)
        ids.save(folder / FOLDER)
        write_json(folder / FOLDER / ENCODER, {"encoder": found})
        if config.alignment:
            splits = Splits.load(config.catalogue, catalogue) if has_splits(config.catalogue) else None
            for name, held_out in {"train": False, "test": True}.items():
                examples = alignment_examples(
                    ids, catalogue, splits, held_out=held_out, noun=config.noun, seed=config.seed
                )
                write_jsonl(folder / "alignment" / f"{name}.jsonl", (each.to_record() for each in examples))
        write_json(folder / "card.json", card)
        return card

    return whole_or_nothing(out, write)


def describe_ids(card: Mapping[str, object], out: str) -> str:
    """The card as a table, and what comes next."""
    levels = card["levels"]
    assert isinstance(levels, list)
    lines = [f"{card['catalogue']} → {out}", "", "level   codes   in use   entropy"]
    lines += [f"{x['level']:5} {x['codes']:7,} {x['used']:8.1%} {x['entropy']:6.2f} bits" for x in levels]
    settings = shlex.join(["--task.catalogue", str(card["catalogue"]), "--backbone.path", out])
    lines += [
        f"{card['items']:,} items; {card['collisions']:,} share the codes of all levels but the last with another one",
        "",
        f"next: python -m instructrec_jax.train --task.type generative {settings} ...",
    ]
    return "\n".join(lines)
