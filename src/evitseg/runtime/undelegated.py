"""Operators of files for phones that the fast library for CPUs, XNNPACK, does not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evitseg.system.silence import silenced


def undelegated_in_litert(path: Path) -> list[str]:
    """Names of a .tflite file's operators that do not run in the XNNPACK delegate."""
    from ai_edge_litert.interpreter import Interpreter

    with silenced():
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
    makers: dict[int, Any] = {}
    for operator in interpreter._get_ops_details():  # in file order; delegates come last and replace operators
        makers |= {int(tensor): operator for tensor in operator["outputs"]}
    wanted, outside = [int(output["index"]) for output in interpreter.get_output_details()], []
    for tensor in wanted:  # grows during the loop, from the logits back to the image
        operator = makers.pop(tensor, None)
        if operator is not None:
            wanted += [int(given) for given in operator["inputs"]]
            if operator["op_name"] != "DELEGATE":
                outside.append(str(operator["op_name"]))
    return outside


def undelegated_in_executorch(path: Path) -> list[str]:
    """Names of a .pte file's operators that do not run in XNNPACK."""
    with silenced():
        from executorch.exir._serialize._program import deserialize_pte_binary

        (plan,) = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    return [operator.name for operator in plan.operators]
