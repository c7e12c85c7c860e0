"""A worker process that trains with PyTorch: `python torch_worker.py JOB`.

Run by an interpreter that has PyTorch and may lack all else, so it stands alone. Its networks have
the layers of `rethink_jax.models`, images in the order N, C, H, W. Dropout, off in the benchmark,
is left out. It answers as `rethink_jax.bench.worker` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd row or column at the bottom and right."""

    def forward(self, x):
        (k, _), (s, _), n = self.kernel_size, self.stride, x.shape[-1]
        total = max((-(-n // s) - 1) * s + k - n, 0)
        if total % 2:
            x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, self.weight, self.bias, s, 0 if total % 2 else total // 2)


class MaxPool(nn.MaxPool2d):
    """A maximum of windows with SAME padding.

    Windows that reach over the border at the bottom and right are the same as TensorFlow's where at
    most one row is missing: with the windows, strides and maps of these networks.
    """

    def __init__(self, window, stride):
        super().__init__(window, stride, ceil_mode=True)


class ShiftNorm(nn.BatchNorm2d):
    """Batch normalization with an offset and without a scale."""

    def __init__(self, channels, **kwargs):
        super().__init__(channels, **kwargs)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


def mlp(model, shape):
    widths, layers = [shape[0] * shape[1] * shape[2], *model["hidden"]], [nn.Flatten()]
    for before, after in zip(widths, widths[1:]):  # noqa: B905, RUF007
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def alexnet(model, shape):
    layers, channels, size = [], shape[2], shape[0]
    for _ in range(2):
        layers += [Conv(channels, 64, 5), nn.ReLU(), MaxPool(3, 2)]
        # PyTorch divides alpha by the number of channels in a window.
        layers.append(nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0))
        channels, size = 64, -(-size // 2)
    layers += [nn.Flatten(), nn.Linear(size * size * 64, 384), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, 10))


class Side(nn.Module):
    """Branches side by side."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def inception(model, shape):
    def module(before, after, window, stride=1):
        norm = ShiftNorm(after, eps=1e-3, momentum=1 - model["batch_norm_decay"])
        return nn.Sequential(Conv(before, after, window, stride, bias=False), norm, nn.ReLU())

    layers, channels = [module(shape[2], 96, 3)], 96
    for widths in (
        (32, 32), (32, 48), 80, (112, 48), (96, 64), (80, 80), (48, 96), 96, (176, 160), (176, 160),
    ):  # fmt: skip
        if isinstance(widths, int):
            layers.append(Side(module(channels, widths, 3, stride=2), MaxPool(3, 2)))
            channels += widths
        else:
            layers.append(Side(module(channels, widths[0], 1), module(channels, widths[1], 3)))
            channels = sum(widths)
    return nn.Sequential(*layers, Mean(), nn.Linear(channels, 10))


def vgg(model, shape):
    def norm(kind, channels):
        return kind(channels, eps=1e-5, momentum=1 - model["batch_norm_decay"])

    layers, channels, size = [], shape[2], shape[0]
    for stage, (width, convs) in enumerate(zip(model["stages"], model["convs"])):  # noqa: B905
        for _ in range(convs):
            layers += [Conv(channels, width, 3, bias=False), norm(nn.BatchNorm2d, width), nn.ReLU()]
            channels = width
        last = stage == len(model["stages"]) - 1
        window = model["last_window"] if last else 2
        layers.append(nn.AvgPool2d(window, ceil_mode=True) if last else MaxPool(2, 2))
        size = -(-size // window)
    layers.append(nn.Flatten())
    features = channels * size * size
    for width in model["dense"]:
        dense = nn.Linear(features, width, bias=False)
        layers += [dense, norm(nn.BatchNorm1d, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 10))


NETWORKS = {"mlp": mlp, "alexnet": alexnet, "inception": inception, "vgg": vgg}


def build(job):
    """The network of a job, for images as they are after the crop."""
    height, width, channels = job["image_shape"]
    size = job["crop"] or height
    return NETWORKS[job["model"]["name"]](job["model"], (size, job["crop"] or width, channels))


def prepare(images, crop):
    """uint8[B, C, H, W] cropped in the middle, each image to mean 0 and variance 1."""
    if crop:
        top, left = ((n - crop) // 2 for n in images.shape[2:])
        images = images[:, :, top : top + crop, left : left + crop]
    x = images.float() / 255
    x = x - x.mean((1, 2, 3), keepdim=True)
    std = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    return x / std.clamp(min=x[0].numel() ** -0.5)


class TorchWay:
    """One trial, epoch after epoch."""

    def __init__(self, job):
        self.job = job
        torch.manual_seed(0)
        self.device = torch.device(job["device"])
        if job["device"] == "cpu":
            torch.set_num_threads(job["threads"])
        count, (height, width, channels) = job["batch"] * job["steps"], job["image_shape"]
        shape = count, channels, height, width
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8).to(self.device)
        self.labels = torch.randint(0, 10, (count,)).to(self.device)
        spatial = job["channels_last"] and job["model"]["name"] != "mlp"
        self.format = torch.channels_last if spatial else torch.contiguous_format
        self.model = build(job).to(self.device, memory_format=self.format)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), job["learning_rate"], momentum=job["momentum"]
        )
        self.loss = torch.compile(self._loss) if job.get("compile") else self._loss

    def setup(self):
        """The first step, in which torch.compile compiles; what the table says of the way."""
        began = time.perf_counter()
        self._step(torch.arange(self.job["batch"], device=self.device))
        self._wait()
        return {
            "compile_seconds": time.perf_counter() - began, "lanes": 1,
            "dtype": "bfloat16" if self.device.type == "cuda" else "float32",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "torch": torch.__version__, "threads": torch.get_num_threads(),
        }  # fmt: skip

    def run(self, epochs):
        """Trains for some epochs: steps done, and the seconds that it took."""
        began = time.perf_counter()
        batch, steps = self.job["batch"], self.job["steps"]
        for _ in range(epochs):
            order = torch.randperm(len(self.labels), device=self.device)
            for i in range(steps):
                self._step(order[i * batch : (i + 1) * batch])
        self._wait()
        return {"seconds": time.perf_counter() - began, "steps": epochs * steps}

    def _step(self, index):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.images[index], self.labels[index]).backward()
        self.optimizer.step()

    def _loss(self, images, labels):
        on_gpu = self.device.type == "cuda"
        x = prepare(images, self.job["crop"]).contiguous(memory_format=self.format)
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            logits = self.model(x)
        return F.cross_entropy(logits.float(), labels)

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main():
    # Whatever else prints to standard output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    way = TorchWay(json.loads(sys.argv[1]))
    for line in sys.stdin:
        question = json.loads(line)
        do = question.pop("do")
        try:
            answer = getattr(way, do)(**question)
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {lines[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
