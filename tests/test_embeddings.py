"""Figures of embeddings on data whose answer is known, and their pictures."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from test_train import TINY

from shamisa import train
from shamisa.reports import plots
from shamisa.training import embeddings
from shamisa.training.config import Config


def test_spread():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert embeddings.spread(x) == pytest.approx(2.5**0.5)
    assert embeddings.spread(x.view(2, 2, 2) + 7) == pytest.approx(2.5**0.5)


def test_distance_by_gap_of_a_line():
    """Embeddings on a line at their severity: the distance is the gap."""
    generator = torch.Generator().manual_seed(0)
    severity = 4 * torch.rand(3, 4, 5, generator=generator)
    z = torch.zeros(3, 2, 4, 5, 6)
    z[..., 0] = severity[:, None]
    found = embeddings.distance_by_gap(z, severity)
    everywhere = float(torch.pdist(z.double().reshape(-1, 6)).mean())
    assert sum(found["pairs"]) == 3 * 2 * 4 * 10
    for gap, distance in zip(found["gap"], found["distance"], strict=True):
        if distance is not None:
            assert abs(distance * everywhere - gap) <= 0.25 + 1e-6
    assert found["distance"][0] is not None


def test_purity_of_clusters_and_of_noise():
    label = torch.arange(4).repeat(10)
    group = torch.arange(40) // 4
    generator = torch.Generator().manual_seed(0)
    clusters = torch.eye(4)[label] + 0.01 * torch.randn(40, 4, generator=generator)
    found = embeddings.purity(clusters, label, group, k=5)
    assert found["labels"] == [0, 1, 2, 3] and found["share"] == [1.0] * 4 and found["chance"] == pytest.approx(0.25)
    noise = embeddings.purity(torch.randn(40, 16, generator=generator), label, group, k=5)
    assert 0.1 < noise["mean"] < 0.45
    contents = torch.eye(10)[group]  # neighbours of the same group do not count
    assert embeddings.purity(contents + 1e-3 * clusters.sum(1, keepdim=True), label, group)["mean"] < 1
    with pytest.raises(ValueError, match="two groups"):
        embeddings.purity(clusters, label, torch.zeros(40))


@pytest.mark.parametrize(("distortions", "batch"), [(TINY["distortions"], 1), (("brighten",), 10)])
def test_figures_of_an_encoder_and_their_picture(distortions, batch, tmp_path):
    fields = {"distortions": distortions, "batch": batch, "steps": 9}
    trainer = train.Trainer(Config(**(TINY | fields)), quiet=True)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    figures = embeddings.evaluate(trainer)
    assert trainer.model.encoder.training
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key  # batch normalisation has learnt nothing from it
    assert len(figures["composition"]["labels"]) == 8 * 2
    if len(distortions) > 1:
        assert figures["kind"]["labels"] == list(distortions) and 0 <= figures["kind"]["mean"] <= 1
        # per row: 2 of 6 images of each of 7 other photographs have its label
        assert figures["kind"]["chance"] == pytest.approx(1 / 3)
    else:
        assert figures["kind"] is None
    records = [{"step": s, "rank_z": 3.0, "rank_h": 2.0, "spread_z": 1.0, "spread_h": 0.5} for s in (0, 10)]
    for rows in (records, []):
        plots.embedding_figures(rows, figures, tmp_path / "embeddings.png")
    times = [{"step": s, "timing": {"split": {"data": 0.1, "loss": 0.2 * s}}} for s in range(3)]
    for rows in (times, times[:1], []):
        plots.step_times(rows, tmp_path / "times.png")
    for name in ("embeddings.png", "times.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300


@pytest.mark.parametrize("more", [0, 1, 4])
def test_curves_have_a_panel_for_every_term(tmp_path, monkeypatch, more):
    """A new term of the objective needs no change of the plots, whatever the number of panels comes to."""
    from matplotlib.axes import Axes

    added = tuple(f"term{i}" for i in range(more))
    monkeypatch.setattr(plots, "TERMS", (*plots.TERMS, *added))
    titles: list[str] = []
    real = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, text, *a, **k: (titles.append(text), real(self, text, *a, **k)))
    timing = {"images_per_s": 1.0, "split": {"data": 0.1}}
    loss = dict.fromkeys(plots.TERMS, 1.0)
    plots.loss_curves([{"step": i, "loss": loss, "lr": 0.1, "timing": timing} for i in range(3)], tmp_path / "c.png")
    assert set(plots.TERMS) <= set(titles) and len(titles) == len(plots.TERMS) + 5
    assert (tmp_path / "c.png").stat().st_size > 1000
