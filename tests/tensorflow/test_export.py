# SPDX-License-Identifier: Apache-2.0
"""Files that are written from compressed Keras models compute what the models compute."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from nncf.compression.parity import Tolerance
from nncf.errors import ExportError, MissingDependency, ParityError, UnsupportedFormat
from nncf.tensorflow.export_form import ExportForm
from tests.tensorflow_models import Subclassed, compressed, convnet, every_kind

NO_ADAPTATION = {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
QUANTIZATION = {"algorithm": "quantization", "initializer": NO_ADAPTATION}


@pytest.fixture(scope="module")
def controller():
    """A convnet in 8 bits, which no test changes."""
    return compressed(convnet(), QUANTIZATION)[0]


@pytest.mark.parametrize(
    ("name", "runtime", "closeness"),
    [
        ("folder", "TensorFlow", 1e-6),
        ("model.keras", "Keras", 1e-6),
        ("model.onnx", "ONNX Runtime", 0.005),
        ("model.xml", "OpenVINO", 0.01),
        ("model.tflite", "LiteRT", 0.02),
    ],
)
def test_every_format_computes_what_the_model_computes(
    controller, tmp_path, name, runtime, closeness
):
    """The report compares 16 samples in the runtime of the format, and the file is there."""
    report = controller.export_model(tmp_path / name)
    assert report.runtime == runtime
    assert [output.name for output in report.outputs] == ["head"]
    assert report.outputs[0].deviation <= closeness
    assert report.outputs[0].agreement == 1
    assert report.sizes.total > 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({name, "model.bin"} if name.endswith(".xml") else {name})


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_every_kind_of_layer_is_written(tmp_path, name):
    """Separable, transposed and one-dimensional convolutions and an LSTM are written too."""
    controller, _ = compressed(every_kind(), QUANTIZATION)
    report = controller.export_model(tmp_path / name)
    assert len(report.outputs) == 2
    assert all(output.deviation < 0.1 for output in report.outputs)


def test_weights_are_stored_as_int8(controller, tmp_path):
    """Kernels take one byte an element in ONNX and LiteRT files."""
    for name in ("model.onnx", "model.tflite"):
        rows = controller.export_model(tmp_path / name).sizes.rows
        convolutions = [row for row in rows if len(row.shape) == 4 and row.form == "codes"]
        assert sorted(row.packed for row in convolutions)[-2:] == [216, 576], name


def test_a_litert_file_computes_with_integers(controller, tmp_path):
    """Every tensor between input and output is int8 (int32 for biases), the last layer's too."""
    from nncf.tensorflow.litert import LiteRTFile

    controller.export_model(tmp_path / "model.tflite")
    file = LiteRTFile(tmp_path / "model.tflite")
    details = file._interpreter.get_tensor_details()
    floats = [item for item in details if item["dtype"] == np.float32]
    assert [list(item["shape"]) for item in floats] == [[1, 12, 12, 3], [1, 5]]


def test_a_litert_file_is_a_quarter_of_the_float_one(tmp_path):
    """At most 0.27 of what the converter makes of the model before compression."""
    image = keras.Input((8, 8, 64))
    x = keras.layers.Conv2D(64, 3, activation="relu", name="first")(image)
    x = keras.layers.Conv2D(64, 3, activation="relu", name="second")(x)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    before = len(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 64)).astype("float32")
    controller, _ = compressed(model, QUANTIZATION, data=data)
    report = controller.export_model(tmp_path / "model.tflite")
    assert (tmp_path / "model.tflite").stat().st_size == report.sizes.total <= 0.27 * before


@pytest.mark.parametrize("apart", [False, True])
def test_a_softmax_over_many_classes_stays_in_float(tmp_path, apart):
    """Probabilities below 1/256 are not zero in a LiteRT file."""
    x = image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(1000, activation=None if apart else "softmax")(x)
    model = keras.Model(image, keras.layers.Softmax()(x) if apart else x)
    data = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype("float32")
    controller, _ = compressed(model, QUANTIZATION, data=data)
    assert controller.export_model(tmp_path / "model.tflite").outputs[0].deviation < 0.1


def test_layers_that_are_not_followed_are_written(tmp_path):
    """A user's layer around a Dense is written with the quantizers inside it."""
    data = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    for name in ("model.onnx", "model.tflite"):
        controller, _ = compressed(Subclassed(), QUANTIZATION, data=data)
        report = controller.export_model(tmp_path / name)
        assert report.outputs[0].deviation < 0.1, name


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_fewer_bits(tmp_path, name):
    """Weights and activations of 4 bits keep their grids; LiteRT refuses the activations."""
    bits = {"weights": {"bits": 4}, "activations": {"bits": 4}}
    controller, _ = compressed(convnet(), {**QUANTIZATION, **bits}, target_device="TRIAL")
    assert controller.export_model(tmp_path / name).outputs[0].deviation < 1e-5
    with pytest.raises(ExportError, match="4 bits have no form in LiteRT"):
        controller.export_model(tmp_path / "model.tflite")


def test_weights_that_litert_has_no_codes_for(tmp_path):
    """Asymmetric weights of 8 bits are an error that says what to set; nothing is left."""
    weights = {"weights": {"mode": "asymmetric"}, "overflow_fix": "disable"}
    controller, _ = compressed(convnet(), {**QUANTIZATION, **weights})
    with pytest.raises(ExportError, match="symmetric"):
        controller.export_model(tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
    assert controller.export_model(tmp_path / "model.onnx").outputs[0].deviation < 0.01


def test_the_file_is_read_without_nncf(controller, tmp_path):
    """A SavedModel replaces an earlier one, and TensorFlow alone runs it."""
    controller.export_model(tmp_path / "folder", save_format="tf")
    controller.export_model(tmp_path / "folder")
    served = tf.saved_model.load(str(tmp_path / "folder"))
    x = np.ones((1, 12, 12, 3), "float32")
    expected = np.asarray(controller.model(x, training=False))
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-6)


def test_a_file_out_of_tolerance_is_not_kept(controller, tmp_path):
    """ParityError names the output, and what was at the path stays there."""
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(ParityError, match="head"):
        controller.export_model(path, tolerance=Tolerance(output=-1.0))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "save_format", "message"),
    [
        ("model.pb", None, "says no format"),
        ("model", "frozen_graph", "saved_model"),
        ("model.h5", None, "keras"),
        ("model.onnx", "tflite", "do not go together"),
        ("model", "caffe", "Available formats"),
    ],
)
def test_formats_that_cannot_be_written(controller, tmp_path, name, save_format, message):
    """The error says what can be written; check_export raises it too."""
    for call in (controller.export_model, controller.check_export):
        with pytest.raises(UnsupportedFormat, match=message):
            call(tmp_path / name, save_format=save_format)
    assert not list(tmp_path.iterdir())


def test_a_missing_package(controller, tmp_path, monkeypatch):
    """The error names the package and how to install it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else found(name)
    )
    with pytest.raises(MissingDependency, match="tf2onnx"):
        controller.check_export(tmp_path / "model.onnx")


def test_a_place_that_cannot_be_written(controller, tmp_path):
    """A folder that is absent, and one that holds something else, are errors."""
    with pytest.raises(ExportError, match="Cannot write to"):
        controller.export_model(tmp_path / "absent" / "model.onnx")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ExportError, match="is no SavedModel"):
        controller.export_model(tmp_path)


def test_names_of_inputs_and_outputs(controller, tmp_path):
    """Names that are given are those of the file; a wrong number is an error."""
    from nncf.onnx.run import OnnxFile

    path = tmp_path / "model.onnx"
    controller.export_model(path, input_names=["x"], output_names=["y"])
    file = OnnxFile(path)
    assert (file.input_names, file.output_names) == (("x",), ("y",))
    with pytest.raises(ExportError, match="1 outputs"):
        controller.export_model(path, output_names=["a", "b"])


def test_the_model_stays_as_it_is(tmp_path):
    """Export changes no variable and no layer of the compressed model."""
    controller, model = compressed(convnet(), QUANTIZATION)
    before = [v.numpy() for v in model.variables]
    controller.export_model(tmp_path / "model.tflite")
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.variables, strict=True))
    assert "call" not in vars(model.get_layer("head"))


def test_a_model_without_a_data_set(tmp_path):
    """Samples are made from the shapes of the inputs, also where an input has integers."""
    from nncf.tensorflow import create_compressed_model

    word = keras.Input((6,), dtype="int32", name="word")
    x = keras.layers.Embedding(4, 8)(word)
    model = keras.Model(word, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x)))
    section = {"algorithm": "quantization", "initializer": {"range": {"num_init_samples": 0}}}
    controller, _ = create_compressed_model(model, {"compression": section}, dump_graphs=False)
    assert controller.export_model(tmp_path / "model.onnx").outputs[0].deviation < 0.01


def test_the_export_form_knows_the_grid_of_each_weight(controller):
    """Every compressed weight of the stripped model has its grid."""
    form = ExportForm.of(controller.model)
    assert sorted(grid.variable.path for grid in form.grids) == [
        "conv1/kernel",
        "head/kernel",
        "shared/kernel",
    ]
