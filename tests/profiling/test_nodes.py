from __future__ import annotations

import pytest

from evitseg.profiling.nodes import original_name


@pytest.mark.parametrize(
    ("node", "operator"),
    [
        ("Conv_12", "Conv_12"),
        ("fused Conv_12", "Conv_12"),
        ("Conv_12_nchwc", "Conv_12"),
        ("ReorderInput_3_Conv_7_nchwc", "Conv_7"),  # ReorderInput_3 is ONNX Runtime's own
        ("fused MatMul_4_Add_5", "MatMul_4"),  # the first one
        ("Conv_1", "Conv_1"),
        ("Conv_123", "Conv_123"),  # not in the file: no operator's name is a beginning of another's
        ("reorder", "reorder"),
    ],
)
def test_a_node_of_onnx_runtime_is_found_in_the_file_by_the_name_inside_its_own(node: str, operator: str) -> None:
    assert original_name(node, {"Conv_1", "Conv_7", "Conv_12", "MatMul_4", "Add_5"}) == operator
