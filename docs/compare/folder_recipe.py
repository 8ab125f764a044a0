"""Prints the table of docs/recipes.md: what gin/pretrain_folder.gin chooses.

PYTHONPATH=. python docs/compare/folder_recipe.py
"""

import ast

from jigclu.tasks.folder_recipe import RULES, Facts, choose_training

IMAGES = (300, 3_000, 30_000, 300_000)
GPU = Facts(images=0, side=375, on_gpu=True, memory=24e9, processes=1, weights=None)
MACHINES = {
    "photographs, CPU": GPU._replace(on_gpu=False, memory=16e9),
    "photographs, GPU with 24 GB": GPU,
    "64 pixels, GPU with 24 GB": GPU._replace(side=64),
}
KNOWN = {"pretrain.optimizer": "@sgd()"}
SHOWN = ("SIZE", "pretrain.encoder", "pretrain.batch_size", "pretrain.learning_rate")


def table() -> str:
    """Returns the table in Markdown."""
    names = [name.rpartition(".")[2] for name in SHOWN]
    lines = ["| " + " | ".join(["images of", "number", *names, "epochs", "steps"]) + " |"]
    lines.append("|---" * (len(SHOWN) + 4) + "|")
    for machine, facts in MACHINES.items():
        for images in IMAGES:
            choices = choose_training(facts._replace(images=images), KNOWN, RULES)
            values = {choice.name: ast.literal_eval(choice.value) for choice in choices}
            epochs = values["schedule.epochs"]
            steps = images // values["pretrain.batch_size"] * epochs
            cells = [f"{images:,}", *(str(values[name]) for name in SHOWN)]
            lines.append(f"| {machine} | {' | '.join(cells)} | {epochs:,} | {steps:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
