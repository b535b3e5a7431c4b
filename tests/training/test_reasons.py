from simmatch_tf.training import reasons


def test_one_line_without_operations():
    text = "{{function_node __wrapped__SaveV2}} x; No space [Op:SaveV2]\nmore"
    assert reasons.reason(OSError(text)) == "x; No space"


def test_what_brought_a_collective_down():
    text = "Graph execution error:\n\nat f\nCollective ops is aborted by: gone"
    assert reasons.reason(OSError(text)) == "Collective ops is aborted by: gone"


def test_an_error_without_a_word():
    assert reasons.reason(ValueError()) == "ValueError()"
