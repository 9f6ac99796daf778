"""Decoding at fixed shapes, replayed by a stand-in for CUDA graphs: it must write what `forward` writes."""

import contextlib
import copy
import gc
import pickle
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gpt_neo_models
from decoding_models import FAMILIES, by_forward, decoder, written
from gpt_neo_models import tokens
from replaying import recorded
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM
from triptych.runtime import fixed_decoding, graphs, packing, preparing
from triptych.runtime.cache import KeyValueCache


@pytest.fixture(autouse=True)
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The CPU replays too, looks at few places at first, and keeps weights as a GPU does. A number for each capture."""
    captures: list[int] = []

    def capture(function: Any, device: torch.device) -> Any:
        captures.append(function.args[0])
        return recorded(function, device)

    monkeypatch.setattr(fixed_decoding, "_REPLAYING", ("cpu",))
    monkeypatch.setattr(fixed_decoding, "_LEAST", 8)
    monkeypatch.setattr(fixed_decoding, "captured", capture)
    monkeypatch.setattr(packing, "BLOCKING", ())
    return captures


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def decoders(model: Any) -> list[fixed_decoding.FixedDecoder]:
    prepared = decoder(model)._prepared
    return prepared.decoders if prepared else []


def plainly(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What `generate` gives by `forward` alone."""
    decoder(model).prepares_decoding = False
    try:
        return model.generate(*args, **kwargs)
    finally:
        decoder(model).prepares_decoding = None


def left_padded(rows: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones((rows, length), dtype=torch.long)
    mask[0, : length - 2] = 0
    mask[-1, :1] = 0
    return {"inputs": tokens(rows, length), "attention_mask": mask}


GREEDY = {"max_new_tokens": 20, "eos_token_id": None}
CALLS: dict[str, dict[str, Any]] = {
    "one row": {"inputs": tokens(1, 5)} | GREEDY,
    "a prompt of one": {"inputs": tokens(1, 1)} | GREEDY,
    "rows": {"inputs": tokens(3, 5)} | GREEDY,
    "padded": left_padded(3, 6) | GREEDY,
    "an end": {"inputs": tokens(3, 5), "max_new_tokens": 20, "eos_token_id": [3, 7, 9], "pad_token_id": 0},
    "drawn": {"inputs": tokens(2, 5), "do_sample": True, "num_return_sequences": 3} | GREEDY,
    "beams": {"inputs": tokens(2, 5), "num_beams": 4, "max_new_tokens": 12, "eos_token_id": 3, "pad_token_id": 0},
    "padded beams": left_padded(2, 6) | {"num_beams": 3, "num_return_sequences": 2} | GREEDY,
    "drawn beams": left_padded(2, 6) | {"num_beams": 3, "do_sample": True} | GREEDY,
    "groups": {"inputs": tokens(2, 5), "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5} | GREEDY,
    "one token": {"inputs": tokens(2, 5), "max_new_tokens": 1, "eos_token_id": None},
    "two tokens": {"inputs": tokens(2, 5), "max_new_tokens": 2, "eos_token_id": None},
}


@pytest.mark.parametrize("call", CALLS)
def test_replayed_steps_write_what_forward_writes(model: Any, call: str) -> None:
    options, got = CALLS[call], []
    for seed in (0, 1):  # the second uses the first one's buffers
        torch.manual_seed(seed)
        got.append(model.generate(**options))
    assert len(decoders(model)) == (call != "one token")
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert torch.equal(got[seed], plainly(model, **options))


@pytest.mark.parametrize("call", ["one row", "padded", "beams"])
def test_outputs_hold_the_documented_cache_and_scores(model: Any, call: str) -> None:
    options = CALLS[call] | {"return_dict_in_generate": True, "output_scores": True}
    got = model.generate(**options)
    assert decoders(model)
    want = plainly(model, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert (torch.stack(got.scores) - torch.stack(want.scores)).nan_to_num(0, 0, 0).abs().max() < 2e-5
    seen = options.get("attention_mask")
    for ours, theirs in zip(got.past_key_values, want.past_key_values, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            if seen is not None:
                a, b = (x[:, :, seen.shape[1] :] for x in (a, b))
            assert (a - b).abs().max() < 2e-5


@pytest.mark.parametrize("prefix", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize("window", [1, 3, 8, 11])
def test_windows_and_growing_texts(replayed: list[int], prefix: int, window: int) -> None:
    model = gpt_neo_models.make(max_position_embeddings=64, window_size=window)
    ids = tokens(2, prefix)
    got, scores = written(model, ids, 30)  # whole rings
    want, true_scores = by_forward(model, ids, 30)
    assert torch.equal(got, want)
    assert (scores - true_scores).abs().max() < 2e-5
    assert sorted(set(replayed)) == [size for size in (8, 16, 32, 64) if size > prefix and size < 2 * (prefix + 29)]
    assert torch.equal(model.generate(ids, max_new_tokens=30, eos_token_id=None), want)  # rings of the window
    sizes = {pair[0].shape[2] for pair in decoders(model)[-1].cache.pairs}
    assert sizes == {window, decoders(model)[-1].kind.capacity}


def test_later_calls_use_what_is_there(model: Any, replayed: list[int]) -> None:
    model.generate(tokens(2, 5), **GREEDY)
    made = len(replayed)
    model.generate(tokens(2, 7), max_new_tokens=18, eos_token_id=None)
    assert len(replayed) == made  # the same sizes
    assert len(decoders(model)) == 1
    for rows in (1, 3, 4):
        model.generate(tokens(rows, 5), **GREEDY)
    assert len(decoders(model)) == 2  # the older ones were let go of
    assert [len(each.ids) for each in decoders(model)] == [3, 4]


def test_a_row_that_ends_at_its_first_token(model: Any) -> None:
    ids = tokens(3, 5)
    first = plainly(model, ids, max_new_tokens=1, eos_token_id=None)[:, -1].tolist()
    options = {"max_new_tokens": 12, "pad_token_id": 0}
    for ends in (first[:1], first[1:]):  # one row is left, or two
        got = model.generate(ids, eos_token_id=ends, **options)
        assert torch.equal(got, plainly(model, ids, eos_token_id=ends, **options))


class Asking:
    """A streamer that asks the model for another text at every token."""

    def __init__(self, model: Any) -> None:
        self.model, self.texts = model, []

    def put(self, value: Tensor) -> None:
        self.texts.append(self.model.generate(tokens(2, 6, seed=3), max_new_tokens=4, eos_token_id=None))

    def end(self) -> None:
        pass


def test_texts_written_at_once_do_not_disturb_each_other(model: Any) -> None:
    want = plainly(model, tokens(2, 5), **GREEDY)
    other = plainly(model, tokens(2, 6, seed=3), max_new_tokens=4, eos_token_id=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_decoding, "_rounded", lambda places: 32)  # of one kind
        streamer = Asking(model)
        assert torch.equal(model.generate(tokens(2, 5), streamer=streamer, **GREEDY), want)
    assert all(torch.equal(text, other) for text in streamer.texts)
    assert len(streamer.texts) == 21


def test_what_was_not_finite_is_forgotten() -> None:
    model = gpt_neo_models.make()
    want = plainly(model, tokens(1, 5), **GREEDY)
    model.generate(tokens(1, 9), **GREEDY)
    for pair in decoders(model)[0].cache.pairs:
        for ring in pair:
            ring.fill_(float("nan"))
    assert torch.equal(model.generate(tokens(1, 5), **GREEDY), want)


@pytest.mark.parametrize("change", ["in place", "through data", "replaced"])
def test_changed_weights_are_seen(model: Any, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_sample", lambda value: torch.empty(0))  # elsewhere than on a CPU there is none
    model.generate(tokens(2, 5), **GREEDY)
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is None or isinstance(module, nn.Embedding):
                continue
            if change == "in place":
                with torch.no_grad():
                    value.mul_(-1.5)
            elif change == "through data":
                value.data.mul_(-1.5)
            else:
                setattr(module, name, nn.Parameter(value.detach() * -1.5))
    assert torch.equal(model.generate(tokens(2, 5), **GREEDY), plainly(model, tokens(2, 5), **GREEDY))


def test_what_only_forward_knows_goes_another_way(model: Any) -> None:
    for options in ({"output_hidden_states": True}, {"output_attentions": True}):
        out = model.generate(tokens(2, 5), return_dict_in_generate=True, **options, **GREEDY)
        assert len(out.hidden_states or out.attentions) == 20
    model.generate(tokens(2, 5), use_cache=False, **GREEDY)
    model.generate(tokens(2, 5), penalty_alpha=0.6, top_k=3, **GREEDY)
    model.generate(tokens(1, 5), prompt_lookup_num_tokens=2, **GREEDY)
    assert not decoders(model)


# -- when it does not work -------------------------------------------------------------------------------------------


def refuse(function: Any, device: torch.device) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_capture_that_fails_warns_once_and_gives_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = plainly(model, tokens(2, 5), **GREEDY)
    monkeypatch.setattr(fixed_decoding, "captured", refuse)
    with pytest.warns(UserWarning, match="without being captured as a CUDA graph.*operation not permitted") as caught:
        assert torch.equal(model.generate(tokens(2, 5), **GREEDY), want)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.generate(tokens(2, 5), **GREEDY), want)
        assert len(model.generate(tokens(1, 5), **GREEDY)) == 1  # other sizes too


def test_capturing_without_a_gpu_is_such_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(fixed_decoding, "_REPLAYING", ("cpu",))
    if torch.cuda.is_available():
        pytest.skip("there is one")
    model = gpt_neo_models.make()
    want = plainly(model, tokens(2, 5), **GREEDY)
    with pytest.warns(UserWarning, match="without being captured"):
        assert torch.equal(model.generate(tokens(2, 5), **GREEDY), want)


def test_compiled_steps_write_what_forward_writes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the making of kernels, which takes long and is the backend's."""
    monkeypatch.setattr(fixed_decoding, "compiled", partial(graphs.compiled, backend="aot_eager"))
    monkeypatch.setattr(fixed_decoding, "captured", lambda function, device: function)
    options = left_padded(2, 6) | GREEDY
    want = plainly(model, **options)
    model.prepare_decoding(compile=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        assert torch.equal(model.generate(**options), want)
    assert not decoder(model)._prepared.failed
    assert len(decoders(model)) == 1


def test_a_compiler_that_fails_warns_once_and_gives_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = plainly(model, tokens(2, 5), **GREEDY)

    def no_compiler(function: Any) -> Any:
        def call() -> Tensor:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(fixed_decoding, "compiled", no_compiler)
    model.prepare_decoding(compile=True)
    with pytest.warns(UserWarning, match="without being compiled.*no C\\+\\+ compiler") as caught:
        assert torch.equal(model.generate(tokens(2, 5), **GREEDY), want)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(tokens(3, 5), **GREEDY)


def test_many_batch_sizes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives up on a function that it has compiled eight times."""
    monkeypatch.setattr(fixed_decoding, "compiled", partial(graphs.compiled, backend="eager"))
    monkeypatch.setattr(fixed_decoding, "captured", lambda function, device: function)
    model = gpt_neo_models.make(num_layers=1, attention_types=[[["global"], 1]])
    model.prepare_decoding(compile=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Decoding goes on")
        for rows in range(1, 11):
            model.generate(tokens(rows, 5), max_new_tokens=3, eos_token_id=None)
    assert not model._prepared.failed


def test_without_memory_for_another_cache_it_is_done_without(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = plainly(model, tokens(3, 5), **GREEDY)
    model.generate(tokens(2, 5), **GREEDY)

    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(fixed_decoding, "FixedCache", full)
        assert torch.equal(model.generate(tokens(3, 5), **GREEDY), want)
    assert not decoders(model)  # those that nobody uses make room
    assert torch.equal(model.generate(tokens(3, 5), **GREEDY), want)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_once_it_is_let_go_of(model: Any, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which knows nothing of a GPU's memory and may come late."""
    if fails:
        monkeypatch.setattr(fixed_decoding, "captured", refuse)
    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.generate(tokens(2, 5), **GREEDY)
            ring = weakref.ref(decoders(model)[0].cache)
            model.prepare_decoding()
            assert ring() is None
            copied = copy.deepcopy(model)
            copied.generate(tokens(2, 5), **GREEDY)
        ring, weight = weakref.ref(decoders(copied)[0].cache), weakref.ref(decoder(copied).get_input_embeddings())
        del copied
        assert ring() is None
        assert weight() is None
    finally:
        gc.enable()


def test_a_capture_is_on_a_stream_of_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream that `torch.cuda.graph` takes by itself is of the device that had the first capture."""
    places, streams = ["cuda:0"], []

    class Stream:
        def __init__(self) -> None:
            self.place = places[-1]

        def wait_stream(self, other: Any) -> None:
            assert self.place == other.place

    class Graph:
        def replay(self) -> None: ...

    @contextlib.contextmanager
    def device(place: torch.device) -> Any:
        places.append(str(place))
        yield
        places.pop()

    @contextlib.contextmanager
    def graph(graph: Any, stream: Any = None, **options: Any) -> Any:
        streams.append(stream)
        yield

    stands_in = {"device": device, "graph": graph, "CUDAGraph": Graph, "Stream": Stream, "current_stream": Stream}
    for name, value in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    for place in ("cuda:0", "cuda:1"):
        graphs.captured(lambda: torch.zeros(1), torch.device(place))()
    assert [stream.place for stream in streams] == ["cuda:0", "cuda:1"]


# -- weights side by side --------------------------------------------------------------------------------------------


def test_weights_side_by_side_stay_what_they_were(model: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.generate(tokens(2, 5), **GREEDY)
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (model, again, copied, pickled):
        assert other.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    model.generate(tokens(2, 5), **GREEDY)
    assert places == {name: value.data_ptr() for name, value in model.state_dict().items()}  # moved once
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for each in (model, copied.train()):
        torch.manual_seed(0)
        each(input_ids=tokens(2, 6), labels=tokens(2, 6)).loss.backward()
    for ours, theirs in zip(model.parameters(), copied.parameters(), strict=True):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad)
    optimizer.step()
    assert torch.equal(model.eval().generate(tokens(2, 5), **GREEDY), plainly(model, tokens(2, 5), **GREEDY))


def test_side_by_side() -> None:
    for biased in ((), (3,)):
        layers = [nn.Linear(4, out, bias=out in biased) for out in (2, 3, 5)]
        weights = [layer.weight.detach().clone() for layer in layers]
        x = torch.randn(2, 4)
        want = torch.cat([layer(x) for layer in layers], dim=-1)
        product = packing.packed(*layers)
        assert torch.allclose(product(x), want, atol=1e-6)
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
        assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == (3 if biased else 1)
        for layer in layers:
            for value in layer.parameters():
                value.data.mul_(2)
        assert torch.allclose(product(x), 2 * want, atol=1e-6)


# -- what a GPU asks for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_step_never_makes_the_host_wait(model: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are no numbers, so whoever looks at one fails, as does what is on two devices."""
    monkeypatch.setattr(preparing, "_ACCELERATORS", ("meta",))
    monkeypatch.setattr(fixed_decoding, "_REPLAYING", ("meta",))
    monkeypatch.setattr(fixed_decoding, "captured", lambda run, device: run)
    model = decoder(model).to("meta", dtype)
    config, ids = model.config, torch.ones((2, 6), dtype=torch.long, device="meta")
    heads = config.num_attention_heads
    seen = torch.zeros((2, heads, 6, config.hidden_size // heads), dtype=dtype, device="meta")
    cache = KeyValueCache([(seen, seen)] * config.num_hidden_layers)
    types = ids if isinstance(model, GPTNeoForCausalLM) else None
    with torch.no_grad():
        lent = fixed_decoding.lent_decoder(
            model, replayed, cache, 20, windowed=True, columns=fixed_decoding.Columns(ids, ids, types)
        )
        assert lent is not None
        logits = lent(ids[:, -1:])
    assert logits.shape == (2, config.vocab_size)
    assert (logits.dtype, logits.device.type) == (torch.float32, "meta")
