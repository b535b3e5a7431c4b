from simmatch_tf.flags import errors


def test_one_line_without_operations():
    text = "{{function_node __wrapped__SaveV2}} x; No space [Op:SaveV2]\nmore"
    assert errors.reason(OSError(text)) == "x; No space"


def test_what_brought_a_collective_down():
    text = "Graph execution error:\n\nat f\nCollective ops is aborted by: gone"
    assert errors.reason(OSError(text)) == "Collective ops is aborted by: gone"


def test_an_error_without_a_word():
    assert errors.reason(ValueError()) == "ValueError()"
