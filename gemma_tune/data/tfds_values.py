"""Values of TensorFlow Datasets as plain Python: text decoded, classes by their names, sequences as lists."""

from __future__ import annotations

from collections.abc import Callable

from gemma_tune.data.rows import RowFault


def readable(features) -> tuple[dict, list[str]]:
    """The features that are read, by name as TFDS keeps no order, and notes on what becomes of the others."""
    kinds = _kinds()
    unread = (kinds.Image, kinds.Audio, kinds.Video)
    media = [name for name, one in sorted(features.items()) if _holds(one, unread)]
    read = {name: one for name, one in sorted(features.items()) if name not in media}
    labels = [name for name, one in read.items() if _holds(one, (kinds.ClassLabel,))]
    notes = [f"Left out, being images, audio or video: {', '.join(media)}."] if media else []
    notes += [f"Classes are read by their names, not their numbers: {', '.join(labels)}."] if labels else []
    return read, notes


def _holds(feature, wanted: tuple[type, ...]) -> bool:
    kinds, inner = _kinds(), []
    if isinstance(feature, kinds.FeaturesDict):
        inner = feature.values()
    elif isinstance(feature, kinds.Sequence):
        inner = [feature.feature]
    return isinstance(feature, wanted) or any(_holds(one, wanted) for one in inner)


def plain_reader(feature) -> Callable[[object, str], object]:
    """What makes a value of the feature plain Python, given the value and where in the row it stands."""
    kinds = _kinds()
    if isinstance(feature, kinds.FeaturesDict):
        fields = {name: plain_reader(one) for name, one in sorted(feature.items())}
        return lambda value, at: {name: one(value[name], f"{at}.{name}") for name, one in fields.items()}
    if isinstance(feature, kinds.Sequence):
        item = plain_reader(feature.feature)
        return lambda value, at: [item(one, f"{at}[{index}]") for index, one in enumerate(_items(value))]
    if isinstance(feature, kinds.ClassLabel) and feature.num_classes:
        names = feature.names
        return lambda value, at: names[value] if value >= 0 else None  # -1 stands for a missing label
    return _leaf


def _items(value):
    """TFDS gives a sequence of dicts as a dict of sequences, nested likewise."""
    if not isinstance(value, dict):
        return value
    columns = [_items(one) for one in value.values()]
    return [dict(zip(value, one, strict=True)) for one in zip(*columns, strict=True)]


def _leaf(value: object, at: str) -> object:
    value = value.tolist() if hasattr(value, "tolist") else value  # of numpy
    if isinstance(value, list):
        return [_leaf(one, f"{at}[{index}]") for index, one in enumerate(value)]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        way_out = "Write it as UTF-8, or leave the row out."
        raise RowFault(at.lstrip("."), value, "The text is not UTF-8.", way_out) from None


def _kinds():
    """The feature classes of TFDS, which is imported when first needed."""
    import tensorflow_datasets

    return tensorflow_datasets.features
