"""The tests that reach the kernels: what other instruction sets and the sanitizers run."""

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = [
    str(FOLDER / name)
    for name in (
        *("test_ops.py", "test_op_errors.py", "test_noise.py", "test_moving_mnist_op.py", "test_fuzz.py"),
        *(
            "test_frame_conv.py",
            "test_frame_scores.py",
            "test_gaussian.py",
            "test_lstm_kernels.py",
            "test_lstm_net.py",
            "test_batch_norm_act.py",
        ),
    )
]
# The same for every instruction set, and slow: finite differences, and PyTorch's own looks at a declaration.
LEFT_OUT = "not gradcheck and not opcheck and not compile"
ARGUMENTS = ["-q", "-k", LEFT_OUT, *FILES]
# Of these, what reaches the CUDA kernels. Large cases take the emulator minutes; bfloat16 sequences, whose hidden state
# is rounded between steps, have a test of their own; and dw_hh is PyTorch's product, which on some CPUs depends on the
# number of threads: the kernels' own test of that runs them in any order.
EMULATED = [
    str(FOLDER / name) for name in ("test_ops.py", "test_op_errors.py", "test_lstm_kernels.py", "test_lstm_net.py")
]
EMULATED_LEFT_OUT = "large or (lstm_layer and bfloat16) or number_of_threads"
EMULATED_ARGUMENTS = ["-k", f"lstm and {LEFT_OUT} and not ({EMULATED_LEFT_OUT})", *EMULATED]
