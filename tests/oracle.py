"""An independent float64 Llama: what every method of the package is checked against.

Written from the formulas alone and sharing no code with the package. Attention is dense, L by L,
and never rotates a vector by its position. Each score is the sum over pairs i of

    Re[q_i · conj(k_i) · exp(j · r · θ_i)],    q_i = q[i] + j·q[i + d/2]   (Llama's pairing),

where r is the effective relative position of the query and the key, so a distance method is just
another r(q, k) and a choice of the keys that are seen. A method is a plain dict, of which every key
is optional:

    {"T": 256,                                       # trained length; for yarn, dca, logn, …
     "frequency": [("ntk", {"factor": 8.0}), ...],   # the λs multiply
     "distance": ("rerope", {"window": 256}),        # or ("leaky-rerope", {"window":, "leak":}), …
     "scales": [("logn", {"clip": True}), ...]}      # query scales multiply

`weights` is a LlamaForCausalLM state dict, `config` its config as a plain dict.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

Weights = dict[str, Tensor]
Config = dict[str, Any]
Method = dict[str, Any]
F64 = torch.float64


def load(folder: str | Path) -> tuple[Weights, Config]:
    """The weights (every *.safetensors file) and the config of a saved transformers folder."""
    from safetensors.torch import load_file

    weights: Weights = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= load_file(file)
    return weights, json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))


# Published defaults -----------------------------------------------------------------------------


def default_factor(length: int, trained: int) -> float:
    """k = L/T, at least 1."""
    return max(1.0, length / trained)


def default_rerope_window(trained: int) -> int:
    """w = T/2."""
    return trained // 2


def default_leaky_window(trained: int) -> int:
    """w = T/4."""
    return trained // 4


def default_leak(length: int, trained: int, window: int) -> int:
    """max(1, ⌈(L−1−w) / (T/2−w)⌉), which keeps w + (L−1−w)/leak ≤ T/2; needs w < T/2."""
    if 2 * window >= trained:
        raise ValueError("the rule for the leak needs a window below T/2")
    return max(1, -(-2 * (length - 1 - window) // (trained - 2 * window)))  # ⌈⌉ in integers


def default_group(length: int, trained: int, window: int) -> int:
    """max(1, ⌈(L−w)/(T−w)⌉), by counting up; needs w < T."""
    group = 1
    while window + group * (trained - window) < length:
        group += 1
    return group


# The three parts of a method --------------------------------------------------------------------


def head_dim(config: Config) -> int:
    """d, the size of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rope_theta(config: Config) -> float:
    """The base of the rotary frequencies, of a model that has no scaling of its own."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError("the oracle starts from an unscaled model")
    return float(rope["rope_theta"] if "rope_theta" in rope else config["rope_theta"])


def yarn_lambda(
    d: int, base: float, trained: int, factor: float, beta_fast: float, beta_slow: float
) -> Tensor:
    """YaRN's λ, [d/2]: θ/λ is θ where γ = 1 (fast dims), θ/k where γ = 0 (slow dims)."""

    def dim_of(rotations: float) -> float:  # the i that turns so many times within T
        return d * math.log(trained / (2 * math.pi * rotations)) / (2 * math.log(base))

    low = max(math.floor(dim_of(beta_fast)), 0)
    high: float = min(math.ceil(dim_of(beta_slow)), d - 1)
    if low == high:
        high += 0.001
    gamma = 1 - ((torch.arange(d // 2, dtype=F64) - low) / (high - low)).clamp(0, 1)
    return 1 / (gamma + (1 - gamma) / factor)


def mrrope_lambda(
    d: int,
    base: float,
    trained: int,
    factor: float,
    kind: str = "pro",
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Tensor:
    """MrRoPE's λ, [d/2]: a number's digits change radix one after the other, each by its share.

    Pairs are digits. Of the m of the middle band, from the last that turns beta_fast times to the
    first that does not turn more than beta_slow times, the j-th radix grows by k^(1/m), or by
    k^(2j/(m(m+1))) where growth is progressive; λ is the product of all that came before.
    """
    turns = [trained * base ** (-2 * i / d) / (2 * math.pi) for i in range(4 * d)]
    start = max(0, sum(t >= beta_fast for t in turns) - 1)
    end = min(sum(t > beta_slow for t in turns), d - 1)
    m, lams = end - start, [1.0]
    for i in range(1, d // 2):
        j = i - start
        grown = 0.0
        if m <= 0:
            grown = float(j == 1)  # all at once
        elif 1 <= j <= m:
            grown = 1 / m if kind == "uni" else 2 * j / (m * (m + 1))
        lams.append(lams[-1] * factor**grown)
    return torch.tensor(lams, dtype=F64)


def cope_lambda(d: int, clip: int, hard: bool) -> Tensor:
    """CoPE's λ, [d/2]: θ/λ is θ faded out by half a cosine over the slowest `clip` pairs."""
    clip = min(clip, d // 2)
    fading = torch.zeros(clip) if hard else (torch.linspace(0, 1, clip, dtype=F64) * math.pi).cos()
    kept = torch.cat((torch.ones(d // 2 - clip), fading if hard else (1 + fading) / 2)).to(F64)
    kept[kept < 1e-9] = 0  # cos π is not −1 to the last bit
    return 1 / kept


def llama3_lambda(
    theta: Tensor, trained: int, factor: float, low_freq_factor: float, high_freq_factor: float
) -> Tensor:
    """Llama 3.1's λ, [d/2], by each pair's wavelength against T."""
    lams = []
    for t in theta.tolist():
        wavelength = 2 * math.pi / t
        if wavelength < trained / high_freq_factor:
            lams.append(1.0)
        elif wavelength > trained / low_freq_factor:
            lams.append(factor)
        else:
            smooth = trained / wavelength - low_freq_factor
            smooth /= high_freq_factor - low_freq_factor
            lams.append(t / ((1 - smooth) * t / factor + smooth * t))
    return torch.tensor(lams, dtype=F64)


def frequencies(config: Config, method: Method, layer: int = 0) -> tuple[Tensor, float]:
    """θ_i / Πλ_i, [d/2], and the attention factor that multiplies rotated q and k each.

    A factor that is a tuple has a number for each layer.
    """
    d, base = head_dim(config), rope_theta(config)
    i = torch.arange(d // 2, dtype=F64)
    lambdas: dict[str, Callable[..., Tensor]] = {
        "rope": lambda: torch.ones_like(i),
        "pi": lambda factor: torch.full_like(i, factor),
        "ntk": lambda factor: factor ** (2 * i / (d - 2)),
        "ntk-old": lambda factor: factor ** (2 * i / d),
        "ntk-fixed": lambda factor: factor ** (2 * (i + 1) / d),
        "beta-radix": lambda factor, b=0.625: torch.exp(
            math.log(factor) / (d / 2) ** b * (i + 1) ** b
        ),
        "yarn": lambda factor, beta_fast=32.0, beta_slow=1.0: yarn_lambda(
            d, base, method["T"], factor, beta_fast, beta_slow
        ),
        "mrrope": lambda **args: mrrope_lambda(d, base, method["T"], **args),
        "p-rope": lambda keep: torch.ones_like(i).where(i < math.floor(keep * d / 2), math.inf),
        "cope": lambda clip, hard=False: cope_lambda(d, clip, hard),
        "abf": lambda new: (new / base) ** (2 * i / d),
        "dynamic-ntk": lambda length, factor=1.0: (
            max(1.0, factor * length / method["T"] - (factor - 1)) ** (2 * i / (d - 2))
        ),
        "llama3": lambda factor, low_freq_factor=1.0, high_freq_factor=4.0: llama3_lambda(
            base ** (-2 * i / d), method["T"], factor, low_freq_factor, high_freq_factor
        ),
        "longrope": lambda length, short, long, attention=None: torch.tensor(
            (short if length <= method["T"] else long)[: d // 2], dtype=F64
        ),
    }
    theta, attention_factor = base ** (-2 * i / d), 1.0
    for name, args in method.get("frequency", ()):
        if isinstance(args.get("factor"), tuple):
            args = {**args, "factor": args["factor"][layer]}
        theta = theta / lambdas[name](**args)
        if name in ("yarn", "mrrope"):
            attention_factor *= 0.1 * math.log(max(1.0, args["factor"])) + 1
        if name == "longrope" and "attention" in args:
            attention_factor *= args["attention"]
        elif name == "longrope" and args["length"] > method["T"]:
            k = args["length"] / method["T"]
            attention_factor *= math.sqrt(1 + math.log(k) / math.log(method["T"]))
    return theta, attention_factor


def effective_positions(length: int, method: Method) -> Tensor:
    """r(q, k) for q, k = 0 … L−1, [L, L]; where a key is not seen, it means nothing."""
    position = torch.arange(length)
    q, k = position[:, None], position[None, :]
    delta = (q - k).clamp(min=0).to(F64)
    if method.get("distance") is None:
        return delta
    name, args = method["distance"]
    return RELATIVE[name](q, k, delta, method, **args).to(F64)


def jet_long_positions(
    config: Config,
    trained: int,
    delta: Tensor,
    window: int,
    factor: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Tensor:
    """What turns pair i by θ_i, [d/2, L, L]: δ inside the window, beyond it θ̃_i/θ_i slower, where
    θ̃ = (1 − m_i) θ_i + m_i θ_i/s, the ramp m as Jet-Long cuts it."""  # fmt: skip
    d, base = head_dim(config), rope_theta(config)

    def dim_of(rotations: float) -> float:
        return d * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dim_of(beta_fast)), 0)
    high = min(math.ceil(dim_of(beta_slow)), d // 2 - 1)
    m = ((torch.arange(d // 2, dtype=F64) - low) / max(high - low, 0.001)).clamp(0, 1)
    speed = ((1 - m) + m / factor)[:, None, None]
    return torch.where(delta < window, delta, window + (delta - window) * speed)


def pair_positions(length: int, config: Config, method: Method) -> Tensor:
    """r(q, k), [L, L], or [d/2, L, L] where each pair has its own."""
    name, args = method.get("distance") or ("", {})
    if name != "jet-long-freq":
        return effective_positions(length, method)
    at = torch.arange(length, dtype=F64)
    return jet_long_positions(config, method["T"], (at[:, None] - at).clamp(min=0), **args)


def temperature(method: Method) -> float:
    """What a distance method multiplies all scores by."""
    name, args = method.get("distance") or ("", {})
    return 0.1 * math.log(args["factor"]) + 1 if name == "jet-long-freq" else 1.0


def seen(length: int, method: Method) -> Tensor:
    """Which keys each query sees, [L, L]."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if method.get("distance") is None:
        return causal
    name, args = method["distance"]
    if name in ("window", "lm-infinite"):
        kept = causal.triu(1 - args["window"])
        kept[:, : args.get("sinks", 0)] = True
        return kept & causal
    if name == "streaming":
        kept = torch.zeros_like(causal)
        for q in range(length):
            kept[q, _kept(q, **args)] = True
        return kept
    return causal


def _kept(q: int, window: int, sinks: int) -> list[int]:
    """The keys that StreamingLLM's cache holds for the query at q, in order."""
    return [k for k in range(q + 1) if k < sinks or k > q - window]


def _streaming(q: Tensor, k: Tensor, delta: Tensor, _: Method, window: int, sinks: int) -> Tensor:
    """Places are counted in what is kept; the query stands at the last."""
    r = torch.zeros(delta.shape, dtype=F64)
    for row in range(len(delta)):
        kept = _kept(row, window, sinks)
        for place, key in enumerate(kept):
            r[row, key] = len(kept) - 1 - place
    return r


def _dca(q: Tensor, k: Tensor, _: Tensor, method: Method, chunk: int, local: int) -> Tensor:
    """The paper's position lists of one chunk, P_q for its own, the last and older chunks."""
    last = method["T"] - 1
    own = list(range(chunk))
    succ = [min(chunk + i, last) if i < local else last for i in range(chunk)]
    lists = torch.tensor([own, succ, [last] * chunk])
    steps = (q // chunk - k // chunk).clamp(0, 2)
    return lists[steps, q % chunk] - k % chunk


RELATIVE: dict[str, Callable[..., Tensor]] = {
    "rerope": lambda q, k, d, _, window: d.clamp(max=window),
    "leaky-rerope": lambda q, k, d, _, window, leak: d.where(
        d < window, window + (d - window) / leak
    ),
    "inv-leaky-rerope": lambda q, k, d, _, window, expansion: d.where(
        d < window, window + (d - window) * (2 * expansion)
    ),
    "self-extend": lambda q, k, d, _, window, group: d.where(
        d < window, q // group - k // group + window - window // group
    ),
    "dca": _dca,
    "jet-long": lambda q, k, d, _, window, group: d.where(d <= window, q // group - k // group),
    "string": lambda q, k, d, _, shift, local: d.where(d < shift, d - shift + local),
    "lm-infinite": lambda q, k, d, _, window, sinks: d.clamp(max=window),
    "streaming": _streaming,
    "window": lambda q, k, d, _, window: d,
    "jet-long-freq": lambda q, k, d, _, **__: d,  # of the fastest pairs; see `pair_positions`
}


def _logn(n: int, trained: int, head: int, clip: bool, power: float = 1.0) -> float:
    scale = math.log(n) / math.log(trained)
    return float(max(scale, 1.0) if clip else scale) ** power


def _mscale(
    n: int, trained: int, head: int, factor: float | None = None, power: float = 2.0
) -> float:
    """What yarn's two attention factors make of a score."""
    longer = n / trained if factor is None else factor
    return float(0.1 * math.log(longer) + 1) ** power if longer > 1 else 1.0


def _llama4(n: int, trained: int, head: int, floor: int, scale: float = 0.1) -> float:
    """By whole spans of `floor` tokens that lie before the query."""
    return 1 + scale * math.log(1 + (n - 1) // floor)


def _infoscale(n: int, trained: int, head: int, dim: int | None = None, clip: bool = True) -> float:
    """How far the n-th root of the sphere's dimension has come, against what it had at T."""
    now, then = (math.sqrt(-math.expm1(-2 * math.log(x) / (dim or head))) for x in (n, trained))
    return max(now / then, 1.0) if clip else now / then


SCALES: dict[str, Callable[..., float]] = {
    "logn": _logn,
    "mscale": _mscale,
    "llama4": _llama4,
    "infoscale": _infoscale,
}


def query_scale(length: int, method: Method, head: int) -> Tensor:
    """What the query at n = 1 … L is multiplied by, [L]; ones without a query scale."""
    scale = torch.ones(length, dtype=F64)
    for name, args in method.get("scales", ()):
        each = [SCALES[name](n, method["T"], head, **args) for n in range(1, length + 1)]
        scale *= torch.tensor(each, dtype=F64)
    return scale


def entropy_scale(s: Tensor, hidden: Tensor, T: int, sinks: int, most: float) -> Tensor:
    """The γ of each row of logits [H, L, L], by bisection: [H, L, 1].

    1 up to T keys; beyond, what brings the entropy of all keys down to that of the first `sinks`
    and the last T − sinks of them, if it is above, and at most `most`.
    """

    def entropy(logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    gamma = torch.ones(*s.shape[:2], 1, dtype=F64)
    for n in range(T + 1, s.shape[1] + 1):
        row = s[:, n - 1, ~hidden[n - 1]]  # [H, n]
        goal = entropy(torch.cat((row[:, :sinks], row[:, sinks - T :]), 1))
        low, high = torch.ones(len(row), dtype=F64), torch.full((len(row),), most, dtype=F64)
        settled, capped = entropy(row) <= goal, entropy(row * most) >= goal
        for _ in range(45):
            middle = (low + high) / 2
            above = entropy(row * middle[:, None]) > goal
            low, high = low.where(~above, middle), high.where(above, middle)
        gamma[:, n - 1, 0] = low.masked_fill(capped, most).masked_fill(settled, 1.0)
    return gamma


# The model --------------------------------------------------------------------------------------


def scores(q: Tensor, k: Tensor, theta: Tensor, r: Tensor) -> Tensor:
    """Σ_i Re[q_i conj(k_i) exp(j r_i θ_i)], [H, L, L], of q, k [H, L, d], θ [d/2] and r [L, L], or
    [d/2, L, L] where each pair has its own.

    With q_i = a + jb and k_i = c + jd, q_i conj(k_i) = (ac + bd) + j(bc − ad): its real part takes
    cos(rθ), its imaginary part −sin(rθ). Entries with the key ahead of its query mean nothing.
    """
    length, half = q.shape[1], q.shape[2] // 2
    out = torch.zeros(q.shape[0], length, length, dtype=F64)
    for i in range(half):
        a, b, c, d = q[..., i], q[..., i + half], k[..., i], k[..., i + half]  # [H, L] each
        real = torch.stack((a, b), -1) @ torch.stack((c, d), -2)  # ac + bd, [H, L, L]
        angle = (r[i] if r.ndim == 3 else r) * theta[i]
        out.addcmul_(real, angle.cos())
        imag = torch.stack((b, -a), -1) @ torch.stack((c, d), -2)  # bc − ad, [H, L, L]
        out.addcmul_(imag, angle.sin(), value=-1)
    return out


def hidden_states(weights: Weights, config: Config, ids: Sequence[int], method: Method) -> Tensor:
    """The last hidden states after the final norm, [L, hidden]."""
    if unknown := set(method) - {"T", "frequency", "distance", "scales", "entropy"}:
        raise ValueError(f"unknown keys in the method: {sorted(unknown)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError("the oracle is a Llama: hidden_act must be silu")
    length, d, heads = len(ids), head_dim(config), config["num_attention_heads"]
    groups = heads // (config.get("num_key_value_heads") or heads)
    r, scale = pair_positions(length, config, method), query_scale(length, method, d)
    scale = scale * temperature(method)
    hidden = ~seen(length, method)

    def linear(x: Tensor, name: str) -> Tensor:
        bias = weights.get(f"{name}.bias")
        out: Tensor = x @ weights[f"{name}.weight"].to(F64).T
        return out if bias is None else out + bias.to(F64)

    def norm(x: Tensor, name: str) -> Tensor:
        rms: Tensor = (x.square().mean(-1, keepdim=True) + config.get("rms_norm_eps", 1e-6)).sqrt()
        return weights[f"{name}.weight"].to(F64) * (x / rms)

    def split(x: Tensor) -> Tensor:  # [L, H·d] → [H, L, d]
        return x.view(length, -1, d).transpose(0, 1)

    x = weights["model.embed_tokens.weight"].to(F64)[torch.as_tensor(ids)]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        theta, attention_factor = frequencies(config, method, layer)
        y = norm(x, f"{at}.input_layernorm")
        q, k, v = (split(linear(y, f"{at}.self_attn.{n}_proj")) for n in "qkv")
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        s = scores(q * scale[:, None], k, theta, r) * (attention_factor**2 / math.sqrt(d))
        if rule := method.get("entropy"):
            s = s * entropy_scale(s, hidden, method["T"], **rule)
        y = s.masked_fill_(hidden, -math.inf).softmax(-1) @ v  # [H, L, d]
        x = x + linear(y.transpose(0, 1).reshape(length, -1), f"{at}.self_attn.o_proj")
        y = norm(x, f"{at}.post_attention_layernorm")
        y = silu(linear(y, f"{at}.mlp.gate_proj")) * linear(y, f"{at}.mlp.up_proj")
        x = x + linear(y, f"{at}.mlp.down_proj")
    return norm(x, "model.norm")


def logits(weights: Weights, config: Config, ids: Sequence[int], method: Method) -> Tensor:
    """The logits of every position, [L, vocabulary], float64."""
    with torch.no_grad():
        tied = config.get("tie_word_embeddings", False)
        head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"].to(F64)
        return hidden_states(weights, config, ids, method) @ head.T


def token_nll(weights: Weights, config: Config, ids: Sequence[int], method: Method) -> Tensor:
    """The negative log-likelihood of each token but the first, [L−1], float64, in nats."""
    log_p = logits(weights, config, ids, method)[:-1].log_softmax(-1)
    return -log_p.gather(1, torch.as_tensor(ids)[1:, None])[:, 0]
