"""From a recording to log-mel frames, with torch alone: mixing down, resampling, filter bank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfast.encoders.common import one_of, whole
from mmfast.plugins.contract import Waveform

# The resampling filter: a Kaiser window over 32 zero crossings to each side whose stop band, 80 dB
# down, begins where the lower of the two rates can carry no more, and whose pass band ends at 0.84
# of that (Smith, "Digital Audio Resampling", ccrma.stanford.edu/~jos/resample).
_CROSSINGS, _ROLLOFF, _BETA = 32, 0.92, 8.0
_MOST_COEFFICIENTS = 1 << 24
_MOST_SAMPLES = 1 << 28
# Of the power of a filter, relative to full scale: 100 dB down, below the noise of 16 bits.
_FLOOR = 1e-10


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """What the audio encoders do to a recording; runs on the CPU, in the workers of a DataLoader.

    Mixed down to one channel, resampled, cut to ``max_seconds``, its power spectrum over Hann
    windows is summed by triangular mel filters, taken the logarithm of, and brought to mean 0 and
    deviation 1 over the recording, so that loudness does not count.

    Attributes:
        sample_rate: in Hz; recordings of other rates are resampled.
        mels: filters F.
        window: length of a window, and of its Fourier transform, in seconds.
        hop: from one frame to the next, in seconds.
        f_min, f_max: lowest and highest frequency, in Hz; None: half the sample rate.
        scale: ``slaney`` or ``htk``; see :func:`mel_filters`.
        max_seconds: a longer recording is cut, in training at a random place, else at the start.
    """

    sample_rate: int = 16000
    mels: int = 64
    window: float = 0.025
    hop: float = 0.01
    f_min: float = 0.0
    f_max: float | None = None
    scale: str = "slaney"
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        whole("sample_rate", self.sample_rate)
        whole("mels", self.mels)
        for name in ("window", "hop", "max_seconds"):
            if getattr(self, name) * self.sample_rate < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)} s; it must hold at least one sample, at "
                    f"{self.sample_rate} Hz"
                )
        self.filters()  # refuses what cannot be

    @property
    def fft(self) -> int:
        """Samples of a window."""
        return round(self.window * self.sample_rate)

    @property
    def step(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop * self.sample_rate)

    @property
    def max_frames(self) -> int:
        """Frames of a recording of ``max_seconds``."""
        return 1 + int(self.max_seconds * self.sample_rate) // self.step

    def filters(self) -> Tensor:
        """The filter bank, float32 (fft // 2 + 1, mels)."""
        top = self.sample_rate / 2 if self.f_max is None else self.f_max
        return mel_filters(
            self.mels,
            self.fft,
            self.sample_rate,
            f_min=self.f_min,
            f_max=top,
            scale=self.scale,
        )

    def __call__(self, raw: Any, *, training: bool = False) -> Tensor:
        """A :class:`Waveform` to frames, float32 (T, mels), T = 1 + samples // step."""
        samples = self.cut(read_waveform(raw, self.sample_rate), training)
        power = self.power(samples)
        frames = power.clamp(min=_FLOOR).log()
        return (frames - frames.mean()) / (frames.std(correction=0) + 1e-3)

    def cut(self, samples: Tensor, training: bool) -> Tensor:
        """At most ``max_seconds`` of samples (T,)."""
        most = int(self.max_seconds * self.sample_rate)
        spare = len(samples) - most
        if spare <= 0:
            return samples
        start = int(torch.randint(spare + 1, ())) if training else 0
        return samples[start : start + most]

    def power(self, samples: Tensor) -> Tensor:
        """The power of each filter in each window: samples (T,) to (1 + T // step, mels).

        Windows are centred on their frame's time; zeros stand beyond both ends.
        """
        window = torch.hann_window(self.fft)
        spectrum = torch.stft(
            samples,
            self.fft,
            self.step,
            window=window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        # Relative to full scale: a sine of amplitude 1 peaks at 1/4, whatever the window.
        power = spectrum.abs().square() / window.sum().square()
        # The filters have area 1 in Hz; so their sum over bins is 1.
        return power.T @ (self.filters() * (self.sample_rate / self.fft))


@lru_cache(maxsize=32)
def mel_filters(
    mels: int,
    fft: int,
    sample_rate: int,
    *,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: str = "slaney",
) -> Tensor:
    """Triangular filters at equal distances on the mel scale, each of area 1 over frequency in Hz.

    Args:
        mels: number of filters.
        fft: samples of the Fourier transform.
        sample_rate: in Hz.
        f_min: where the first filter begins, in Hz.
        f_max: where the last one ends, in Hz; None: at half the rate.
        scale: ``slaney``, linear below 1 kHz and logarithmic above (Slaney, 1998, "Auditory
            Toolbox"; librosa's and Whisper's), or ``htk``, 2595 log10(1 + f / 700) (O'Shaughnessy,
            1987; that of HTK and Kaldi).

    Returns:
        float32 (fft // 2 + 1, mels). The tensor is shared: do not change it.

    Raises:
        ValueError: impossible frequencies, or a filter so narrow that no bin falls into it.
    """
    one_of("scale", scale, ("slaney", "htk"))
    top = sample_rate / 2 if f_max is None else f_max
    if not 0 <= f_min < top <= sample_rate / 2:
        raise ValueError(
            f"f_min and f_max are {f_min} and {f_max} Hz; they must be 0 <= f_min < f_max <= "
            f"{sample_rate / 2}, half the sample rate"
        )
    low, high = _to_mel(f_min, scale), _to_mel(top, scale)
    corners = torch.tensor(
        [_to_hz(low + (high - low) * i / (mels + 1), scale) for i in range(mels + 2)],
        dtype=torch.float64,
    )
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.arange(fft // 2 + 1, dtype=torch.float64)[:, None] * sample_rate / fft
    rising = (bins - left) / (middle - left)
    falling = (right - bins) / (right - middle)
    filters = torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)
    empty = (filters.sum(dim=0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"mels is {mels}; {len(empty)} of the filters, the first at "
            f"{middle[empty[0]]:.0f} Hz, hold no bin of a {fft}-sample spectrum: take fewer mels, "
            "or a longer window"
        )
    return filters.float()


def read_waveform(raw: Any, sample_rate: int) -> Tensor:
    """A :class:`Waveform` mixed down to one channel and resampled: float32 (T,).

    Raises:
        TypeError: no waveform, or samples that are not floating point.
        ValueError: samples of another shape than (T,) or (channels, T), that are not finite, or of
            a rate that cannot be resampled.
    """
    if not isinstance(raw, tuple) or len(raw) != 2:
        raise TypeError(
            f"audio is a {type(raw).__name__}; it must be a Waveform(samples, sample_rate)"
        )
    samples, rate = Waveform(*raw)
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        kind = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
        raise TypeError(
            f"audio samples are {kind}; they must be a float tensor in -1..1: divide integer "
            "samples by their greatest value"
        )
    if samples.dim() not in (1, 2):
        raise ValueError(
            f"audio samples have shape {tuple(samples.shape)}; it must be (T,) or (channels, T)"
        )
    if not samples.isfinite().all():
        raise ValueError("audio samples hold NaN or infinity; they must be finite")
    mono = samples.float() if samples.dim() == 1 else samples.float().mean(dim=0)
    return resample(mono, rate, sample_rate)


def resample(samples: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resamples by a windowed sinc filter.

    Args:
        samples: float32 (T,).
        rate: of ``samples``, in Hz.
        new_rate: wanted, in Hz.

    Returns:
        float32 (ceil(T * new_rate / rate),), ``samples`` itself if the rates are equal.

    Raises:
        ValueError: a rate that is no positive int, or two rates with hardly a common divisor.
    """
    whole("sample_rate", rate)
    whole("sample_rate", new_rate)
    if rate == new_rate or len(samples) == 0:
        return samples
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    if old * new > _MOST_COEFFICIENTS:
        raise ValueError(
            f"sample_rate is {rate} Hz and {new_rate} Hz is wanted: in lowest terms {old} / {new}, "
            "too many phases; resample the recording to a usual rate first"
        )
    length = -(-len(samples) * new // old)
    if length > _MOST_SAMPLES:
        raise ValueError(
            f"sample_rate is {rate} Hz: resampled to {new_rate} Hz, {len(samples)} samples would "
            f"be {length}; at most {_MOST_SAMPLES} are made"
        )
    kernel, reach = _sinc_kernel(old, new)
    blocks = -(-length // new)
    padded = F.pad(samples, (reach, blocks * old + reach - len(samples)))
    # Every `old` samples the filter meets the same `new` phases.
    phases = F.conv1d(padded[None, None], kernel[:, None], stride=old)[0]
    return phases.T.reshape(-1)[:length]


@lru_cache(maxsize=8)
def _sinc_kernel(old: int, new: int) -> tuple[Tensor, int]:
    """The filter of each phase, float32 (new, reach + old + reach), and its reach in samples."""
    cutoff = _ROLLOFF * min(1.0, new / old)  # relative to half the old rate
    reach = math.ceil(_CROSSINGS / cutoff)
    places = torch.arange(-reach, old + reach, dtype=torch.float64)
    times = torch.arange(new, dtype=torch.float64)[:, None] * old / new - places
    inside = (1 - (times * cutoff / _CROSSINGS).square()).clamp(min=0)
    window = torch.special.i0(_BETA * inside.sqrt()) / torch.special.i0(
        torch.tensor(_BETA, dtype=torch.float64)
    )
    window = window * (inside > 0)
    return (cutoff * torch.sinc(cutoff * times) * window).float(), reach


def _to_mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hz / 700)
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000, 6.4)


def _to_hz(mel: float, scale: str) -> float:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)
