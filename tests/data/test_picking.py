import numpy as np
import pytest

from simmatch_tf.data import picking
from simmatch_tf.flags.errors import InputError


def blobs(groups=6, each=60, width=8, seed=0, spread=0.15):
    """Features of well separated groups, and the groups."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(groups, width))
    labels = np.repeat(np.arange(groups), each)
    noise = spread * random.normal(size=(len(labels), width))
    return (centers[labels] + noise).astype(np.float32), labels


def plain_typicality(features, members):
    """The published equation, in float64, without blocks."""
    inside = features[members].astype(np.float64)
    gaps = inside[:, None] - inside[None]
    distances = np.sort(np.linalg.norm(gaps, axis=2), axis=1)[:, 1:]
    neighbors = min(20, max(1, len(members) // 2))
    return 1 / distances[:, :neighbors].mean(axis=1)


@pytest.mark.parametrize("method", ["typical", "kmeans", "maxherding"])
def test_picks_one_of_each_group(method):
    features, groups = blobs()
    picks = picking.pick(features, 6, method=method)
    assert sorted(groups[picks.order]) == list(range(6))


def test_typicality_is_the_published_one_and_the_highest_is_picked():
    features, groups = blobs(each=90)
    picks = picking.pick(features, 6)
    unit = picking.normalized(features)
    for index in picks.order:
        members = np.flatnonzero(picks.clusters == picks.clusters[index])
        expected = plain_typicality(unit, members)
        np.testing.assert_allclose(
            picks.typicality[members], expected, rtol=1e-3
        )
        assert index == members[expected.argmax()]


def test_picks_do_not_depend_on_the_size_of_blocks(monkeypatch):
    features, _ = blobs()
    expected = [
        picking.pick(features, 9, method=m) for m in ("typical", "maxherding")
    ]
    monkeypatch.setattr(picking, "_ROWS", 7)
    for method, picks in zip(("typical", "maxherding"), expected, strict=True):
        again = picking.pick(features, 9, method=method)
        np.testing.assert_array_equal(again.order, picks.order)
        np.testing.assert_allclose(
            again.typicality, picks.typicality, rtol=1e-5
        )


@pytest.mark.parametrize("method", picking.METHODS)
def test_picks_are_distinct_and_functions_of_the_seed(method):
    features, groups = blobs(seed=3, spread=2)
    classes = groups if method == "stratified" else None
    orders = [
        picking.pick(
            features, 60, method=method, seed=seed, classes=classes
        ).order
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert len(set(orders[0].tolist())) == 60
    if method != "maxherding":  # nothing is drawn of so few images
        assert orders[0].tolist() != orders[2].tolist()


def test_the_first_picks_cover_all_groups():
    features, groups = blobs(spread=0.3)
    order = picking.pick(features, 24).order
    assert sorted(groups[order[:6]]) == list(range(6))


def test_clusters_without_a_label_come_first():
    features, groups = blobs()
    labeled = [int(np.flatnonzero(groups == group)[3]) for group in (0, 2, 5)]
    for method in ("typical", "kmeans", "maxherding"):
        order = picking.pick(features, 3, method=method, labeled=labeled).order
        assert sorted(groups[order]) == [1, 3, 4], method
        assert not set(labeled) & set(order.tolist())


def test_stratified_counts_the_labels_that_are_there():
    features, groups = blobs()
    labeled = np.flatnonzero(groups == 2)[:2]
    order = picking.pick(
        features, 10, method="stratified", labeled=labeled, classes=groups
    ).order
    counts = np.bincount(groups[order], minlength=6)
    counts[2] += 2
    assert counts.tolist() == [2] * 6


def test_a_copy_of_a_labeled_image_is_never_picked():
    features, _ = blobs(groups=2, each=5)
    features = np.concatenate([features, features[:1], features[7:8]])
    for method in ("typical", "kmeans", "maxherding", "random"):
        picks = picking.pick(features, 8, method=method, labeled=[10])
        assert not {0, 10, 11} & set(picks.order.tolist())
        assert picks.copy_of[0] == 10 and picks.copy_of[11] == 7
        assert picks.clusters[11] == picks.clusters[7]
        assert np.isnan(picks.typicality[[0, 11]]).all()


def test_uncertain_images_are_covered_first():
    features, groups = blobs()
    uncertainty = np.where(groups == 4, 1.0, 0.01)
    for method in ("typical", "maxherding"):
        order = picking.pick(
            features, 2, method=method, uncertainty=uncertainty
        ).order
        assert groups[order[0]] == 4


def test_of_many_images_a_part_is_covered(monkeypatch):
    features, groups = blobs()
    monkeypatch.setattr(picking, "_COVERED", 90)
    monkeypatch.setattr(picking, "_CANDIDATES", 70)
    order = picking.pick(features, 6, method="maxherding").order
    assert sorted(groups[order]) == list(range(6))


def test_more_clusters_than_the_cap(monkeypatch):
    features, groups = blobs()
    monkeypatch.setattr(picking, "MAX_CLUSTERS", 6)
    picks = picking.pick(features, 12)
    assert picks.clusters.max() == 5
    assert np.bincount(groups[picks.order]).tolist() == [2] * 6


def test_mini_batches_above_fifty_clusters():
    features, groups = blobs(groups=12, each=30)
    picks = picking.pick(features, 60)
    assert len(set(picks.order.tolist())) == 60
    assert set(groups[picks.order]) == set(range(12))


def test_all_images_of_a_small_folder_can_be_picked():
    features, _ = blobs(groups=2, each=4)
    for method in ("typical", "kmeans", "maxherding", "random"):
        order = picking.pick(features, 8, method=method).order
        assert sorted(order.tolist()) == list(range(8))


def test_principal_components_keep_distances():
    features, _ = blobs()
    reduced = picking.principal(features)
    centered = features - features.mean(axis=0)
    np.testing.assert_allclose(
        reduced @ reduced.T, centered @ centered.T, atol=1e-3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 13}, "--count=13: must be from 1 to 12"),
        ({"count": 0}, "--count=0: must be from 1"),
        ({"method": "best"}, "--method=best: must be one of typical"),
        ({"method": "stratified"}, "classes are needed"),
        ({"classes": np.zeros(12)}, "and for no other"),
        ({"method": "random", "uncertainty": np.ones(12)}, "has no use"),
        ({"uncertainty": np.ones(3)}, r"of shape \(3,\)"),
        ({"uncertainty": -np.ones(12)}, "at least 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    features, _ = blobs(groups=2, each=6)
    with pytest.raises(InputError, match=message):
        picking.pick(features, **{"count": 2, **arguments})


def test_features_that_are_not_finite_are_refused():
    features, _ = blobs(groups=2, each=6)
    features[7, 1] = np.nan
    with pytest.raises(InputError, match="image 7 are not finite"):
        picking.pick(features, 2)


# scikit-activeml 1.0.1 picks these of `blobs(spread=0.5, each=100)`: the test
# below compares with it where it is installed.
TYPICAL = [99, 178, 251, 324, 408, 509]
HERDED = [452, 178, 251, 340, 566, 32, 408, 222]
HERDED_AFTER = [550, 251, 340, 493, 64, 517, 178, 222]


def test_recorded_picks_of_another_implementation():
    features, _ = blobs(spread=0.5, each=100)
    order = picking.pick(features, 6).order
    assert sorted(order.tolist()) == TYPICAL
    herded = picking.pick(features, 8, method="maxherding")
    assert herded.order.tolist() == HERDED
    after = picking.pick(
        features, 8, method="maxherding", labeled=[3, 150, 151]
    )
    assert after.order.tolist() == HERDED_AFTER


def by_activeml(features, labeled=()):
    pool = pytest.importorskip("skactiveml.pool")
    features = picking.normalized(features).astype(np.float64)
    y = np.full(len(features), np.nan)
    y[list(labeled)] = 0
    typical = pool.TypiClust(
        random_state=0, k=picking.NEIGHBORS, cluster_algo_dict={"n_init": 1}
    ).query(features, y, batch_size=6)
    herded = pool.MaxHerding(
        random_state=0, metric_dict={"gamma": 1 / picking.KERNEL_WIDTH}
    ).query(features, y, batch_size=8)
    return typical.tolist(), herded.tolist()


@pytest.mark.extra
@pytest.mark.parametrize("labeled", [(), (3, 150, 151)])
@pytest.mark.parametrize("seed", [0, 1])
def test_picks_are_those_of_scikit_activeml(seed, labeled):
    features, _ = blobs(spread=0.5, each=100, seed=seed)
    typical, herded = by_activeml(features, labeled)
    picks = picking.pick(features, 6, labeled=labeled)
    # The same images; their order differs, see `picking._best_first`.
    assert sorted(picks.order.tolist()) == sorted(typical)
    order = picking.pick(
        features, 8, method="maxherding", labeled=labeled
    ).order
    assert order.tolist() == herded


def least_typical(features, clusters, distinct):
    return -picking_typicality(features, clusters, distinct)


def nothing_reached(features, covered, labeled):
    return np.zeros(len(covered), np.float32)


def never_covered(kernel, reached, weights, count):
    gains = weights @ np.maximum(kernel - reached[:, None], 0)
    return np.argsort(-gains, kind="stable")[:count].tolist()


picking_typicality = picking._typicality
FAULTS = {
    "_typicality": least_typical,
    "_reached": nothing_reached,
    "_greedy": never_covered,
    "KERNEL_WIDTH": 0.1,
    "NEIGHBORS": 3,
}


@pytest.mark.parametrize("place", FAULTS)
def test_the_recorded_picks_see_faults(monkeypatch, place):
    monkeypatch.setattr(picking, place, FAULTS[place])
    with pytest.raises(AssertionError):
        test_recorded_picks_of_another_implementation()
