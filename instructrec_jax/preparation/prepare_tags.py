"""Requests from user tags of a prepared folder's items, written to a folder of their own."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from instructrec_jax.files import write_text
from instructrec_jax.preparation import train_settings
from instructrec_jax.preparation.prepare_data import check_target, whole_or_nothing
from instructrec_jax.preparation.wording.tags import TagConfig, read_tags, tag_requests
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue, Interactions, Splits, save_prepared


@dataclass(kw_only=True)
class TagsConfig(TagConfig):
    """Make requests from a MovieLens tags.csv for the items of a prepared folder."""

    source: str
    """tags.csv: userId, movieId, tag"""
    catalogue: str
    """prepared folder with the items and the interactions"""
    out: str
    """folder to write; must not exist"""
    overwrite: bool = False
    """replace `out` if it holds prepared data"""
    personal: bool = False
    """true: a request belongs to one user, whose other items are the history; false: to all users, without history"""


def prepare_tags(config: TagsConfig) -> dict[str, object]:
    """Writes the requests; returns the card of the folder.

    The folder's `splits/` hold, for training, the whole sequences of the users without tags, so that a ranker trained
    on them has not seen interactions of the users who made the requests.
    """
    out = Path(config.out).absolute()
    check_target(out, config.overwrite)
    catalogue = Catalogue.load(config.catalogue)
    interactions, splits = Interactions.load(config.catalogue, catalogue), Splits.load(config.catalogue, catalogue)
    applications = read_tags(config.source)
    parts = zip(splits.train, splits.validation, splits.test, strict=True)
    whole = dict(zip(splits.user_ids, map(np.concatenate, parts), strict=True))
    histories = {user: [catalogue.ids[item] for item in items] for user, items in whole.items()}
    requests = tag_requests(catalogue, applications, config, histories if config.personal else None)
    taggers = {user for user, _, _ in applications}
    kept = [user for user in splits.user_ids if user not in taggers]
    nothing = [np.empty(0, np.int32)] * len(kept)
    left = Splits(kept, [whole[user] for user in kept], nothing, nothing)
    settings = {k: v for k, v in asdict(config).items() if k not in ("source", "catalogue", "out", "overwrite")}

    def write(folder: Path) -> dict[str, object]:
        card = save_prepared(
            folder,
            catalogue,
            interactions,
            left,
            {name: requests[name] for name in SPLITS},
            source=Path(config.source).name,
            settings=settings,
            notes={"tag_applications": len(applications), "users_with_tags": len(splits.user_ids) - len(kept)},
        )
        write_text(folder / train_settings.FILE, train_settings.train_settings(card, config.out, out.name))
        return card

    return whole_or_nothing(out, write)
