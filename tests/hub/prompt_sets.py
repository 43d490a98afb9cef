"""Prompts, edits and judges' prompts of the image benchmarks in their official files, a few of every task.

The files have the official names, keys and order; the rows are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from reca.evaluation.tasks.gedit import GROUPS
from reca.evaluation.tasks.geneval import TASKS
from reca.evaluation.tasks.imgedit import TYPES
from reca.evaluation.tasks.t2i_compbench import BASE, COMPLEX
from tests.hub.encoded import Files, cell, csv_table, document, image, lines, tables, tar

# GenEval's names of COCO's classes, in order of the class index.
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
SEEN = ("cat", "dog", "car", "cup")  # what the prompts name, and the tiny detector finds
PER_TASK = 3
Row = dict[str, Any]


# ---- GenEval ---------------------------------------------------------------------------------------
def geneval() -> Files:
    """Sorted by task, as the official list is."""
    rows = [row for task in TASKS for row in _of_geneval(task)]
    return {
        "evaluation_metadata.jsonl": lines(rows),
        "generation_prompts.txt": "".join(f"{row['prompt']}\n" for row in rows).encode(),
        "object_names.txt": "".join(f"{name}\n" for name in COCO).encode(),
    }


def _of_geneval(task: str) -> Iterator[Row]:
    colours = ("red", "blue", "green", "black")
    for number in range(PER_TASK):
        one, other = SEEN[number], SEEN[number + 1]
        first, second = {"class": one, "count": 1}, {"class": other, "count": 1}
        colour, shade = colours[number], colours[number + 1]
        include, text = {
            "single_object": ([first], f"a {one}"),
            "two_object": ([first, second], f"a {one} and a {other}"),
            "counting": ([{"class": one, "count": 2}], f"two {one}s"),
            "colors": ([first | {"color": colour}], f"a {colour} {one}"),
            "position": (
                [first, second | {"position": ["left of", 0]}],
                f"a {other} left of a {one}",
            ),
            "color_attr": (
                [first | {"color": colour}, second | {"color": shade}],
                f"a {colour} {one} and a {shade} {other}",
            ),
        }[task]
        row: Row = {"tag": task, "include": include}
        if task == "counting":
            row["exclude"] = [{"class": one, "count": 3}]
        yield {**row, "prompt": f"a photo of {text}"}


# ---- DPG-Bench -------------------------------------------------------------------------------------
ITEMS = (
    ("partiprompts3", "A small red kite above a wide green field, while two children look up at it."),
    ("whoops12", "A cat in a blue coat reads a newspaper at a round wooden table."),
    ("diffusiondb40", "A stone bridge over a calm river in the evening, with three lanterns along it."),
    ("countbench7", "Five yellow cups in a row on a white shelf, each with a different handle."),
    ("midjourney21", "A glass lighthouse on a cliff, painted in loose strokes of grey and orange."),
    ("posescript5", "A dancer leans to the left with one arm raised and the other behind the back."),
    ("stanford9", "A black dog sleeps below a bench, next to a bicycle with a basket of apples."),
    ("vrd17", "A lamp stands behind a sofa, and a cushion lies on the floor in front of it."),
    ("localized2", "A long pier leads into the sea, and a white boat lies at its end."),
    ("drawtext8", "A chalkboard outside a bakery that says fresh bread, with a drawing of a loaf."),
    ("COCOval30", "A tram passes an old clock tower as people wait below umbrellas."),
    ("partiprompts88", "A purple whale made of paper floats among small paper stars."),
    ("whoops31", "A snowman in the desert holds a melting ice cream."),
    ("vrd44", "A red truck parks between two trees, and a ladder leans on its side."),
)  # fmt: skip
# Category of a question and what it asks; the second depends on the first.
ASKED = (
    ("entity", "whole", "0", "Is the first thing that the text names there?"),
    ("attribute", "color", "1", "Does it have the colour of the text?"),
    ("relation", "spatial", "1", "Is it where the text says?"),
    ("global", "", "0", "Is the style that of the text?"),
    ("other", "count", "1", "Is the number right?"),
)


def dpg() -> Files:
    return {"prompts.json": document({f"{name}.txt": text for name, text in ITEMS})}


def dpg_questions() -> Files:
    rows = []
    for name, text in ITEMS:
        for number, (broad, detailed, dependency, question) in enumerate(ASKED, 1):
            kind = f"{broad} - {detailed}" if detailed else broad
            rows.append(
                {
                    "item_id": name,
                    "text": text,
                    "keywords": "",
                    "proposition_id": number,
                    "dependency": dependency,
                    "category_broad": broad,
                    "category_detailed": detailed,
                    "tuple": f"{kind} (thing {number})",
                    "question_natural_language": question,
                }
            )
    return {"dpg_bench.csv": csv_table(rows)}


# ---- WISE ------------------------------------------------------------------------------------------
# Official ids by file: category and subcategory of two prompts or more each.
WISE: dict[str, list[tuple[int, str, str]]] = {
    "cultural_common_sense": [(n, "Cultural knowledge", "Festival") for n in (1, 2, 3)],
    "spatio-temporal_reasoning": [
        *((n, "time", "Horizontal time") for n in (401, 402, 403)),
        *((n, "Space", "different view") for n in (568, 569, 570)),
    ],
    "natural_science": [
        (first + n, name, "State")
        for first, name in ((701, "Biology"), (801, "Physics"), (901, "Chemistry"))
        for n in range(3)
    ],
}


def wise() -> Files:
    """Each file as it is, with its prompts rewritten, and all of them in one."""
    files, every = {}, []
    for name, rows in WISE.items():
        made = [
            {
                "Prompt": f"What number {number} of a list of riddles describes",
                "Explanation": f"The picture should show the answer to riddle {number}.",
                "Category": category,
                "Subcategory": kind,
                "prompt_id": number,
            }
            for number, category, kind in rows
        ]
        every += [{**row, "Hint": f"Answer {row['prompt_id']}."} for row in made]
        plain = [{**row, "Prompt": f"Answer {row['prompt_id']}."} for row in made]
        files |= {f"{name}.json": document(made), f"{name}_rewrite.json": document(plain)}
    return {**files, "final_data.json": document(every)}


# ---- ImgEdit ---------------------------------------------------------------------------------------
def _edits() -> dict[str, Row]:
    kinds = product(range(2), TYPES)  # not sorted by type, as the official list is not
    return {
        str(number): {
            "id": f"animal/{number:09d}.jpg",
            "prompt": f"Carry out a change of type {kind} on the animal, version {turn}.",
            "edit_type": kind,
        }
        for number, (turn, kind) in enumerate(kinds, 1)
    }


def imgedit() -> Files:
    template = (
        "Rate an edit of type {} in three respects, each with a number from 1 to 5.\n"
        "Reply in this form:\nBrief reasoning: at most 20 words.\nPrompt Compliance: a number.\n"
        "Visual Naturalness: a number.\nPhysical & Detail Integrity: a number.\n"
        "editing instruction is : <edit_prompt>.\n\nBelow are the images before and after editing:\n"
    )
    return {
        "singleturn.json": document(_edits()),
        "judge_prompt.json": document({kind: template.format(kind) for kind in TYPES}),
    }


def imgedit_images() -> Files:
    """The archive of the source images; other archives beside it are not fetched."""
    members = {
        f"Benchmark/singleturn/{edit['id']}": image(400 + number, size=(48, 32))
        for number, edit in enumerate(_edits().values())
    }
    return {
        "Benchmark.tar": tar(members),
        "ImgEdit_recap_mask.tar": b"never fetched",
        "README.md": b"---\nlicense: other\n---\n",
    }


# ---- GEdit-Bench -----------------------------------------------------------------------------------
def gedit_bench() -> Files:
    """Every edit in English and in Chinese."""
    rows = []
    for number, (turn, group) in enumerate(product(range(2), GROUPS)):
        told = {
            "en": f"Make a change of kind {group}, version {turn}",
            "cn": f"\u4fee\u6539{turn}",
        }
        for language, instruction in told.items():
            source = cell(500 + number, "PNG", (40, 56))
            rows.append(
                {
                    "key": f"{number:032x}{language}",
                    "task_type": group,
                    "instruction": instruction,
                    "instruction_language": language,
                    "input_image": source,
                    "input_image_raw": source,
                    "Intersection_exist": turn == 0,
                }
            )
    return {**tables("data/train", rows, 2), "README.md": b"---\nlicense: other\n---\n"}


# ---- T2I-CompBench ---------------------------------------------------------------------------------
def t2i_compbench() -> Files:
    """Sorted by category, whose names have an underscore in this file."""
    names = sorted(name.replace(" ", "_") for name in (*BASE, *COMPLEX))
    rows = [
        {
            "Question": f"a {thing} that shows {name.replace('_', ' ')}",
            "Category": name,
            "Question_id": 100 * place + number,
        }
        for place, name in enumerate(names, 1)
        for number, thing in enumerate(SEEN[:2], 1)
    ]
    return {"val_comp.json": document(rows)}


# ---- judges' prompts -------------------------------------------------------------------------------
def judge_prompts() -> dict[str, Files]:
    """By source; the forms of the replies are the official ones, since their readers expect them."""
    listed = 'Reply with JSON only: {"score": [first, second], "reasoning": "..."}'
    return {
        "wise-judge": {
            "judge_prompt.json": document(
                {
                    "note": "in our own words",
                    "system": "You rate generated pictures strictly.",
                    "user": "Give three scores of 0, 1 or 2.\n**Consistency:** SCORE\n**Realism:** SCORE\n"
                    '**Aesthetic Quality:** SCORE\nPROMPT: "<PROMPT>"\nEXPLANATION: "<EXPLANATION>"\n',
                }
            )
        },
        "gedit-judge": {
            "judge_prompts.json": document(
                {
                    "note": "in our own words",
                    "parts": {},
                    "SC": "From 0 to 10: was the edit done, and was the rest left alone? "
                    f"{listed}\n\nEditing instruction: <instruction>\n",
                    "PQ": f"From 0 to 10: is the picture natural, and without artifacts? {listed}\n",
                }
            )
        },
        "t2i-compbench-judge": {
            "judge_prompt.json": document(
                {
                    "note": "in our own words",
                    "prompt": 'How well does the picture fit the text "<PROMPT>"? Give a score from 0 to 100 as '
                    "JSON with the keys score and explanation.",
                }
            )
        },
        "mmvet-judge": {
            "mmvet_judge_prompt.json": document(
                {
                    "note": "in our own words",
                    "prompt": "Grade each prediction from 0.0 to 1.0.\n\nQuestion | Ground truth | Prediction | "
                    "Correctness\n--- | --- | --- | ---\nWhat is 1 + 1? | 2 | two | 1.0\n",
                }
            )
        },
    }


def files() -> dict[str, Files]:
    """Everything of the image benchmarks by source."""
    return {
        "geneval": geneval(),
        "dpg": dpg(),
        "dpg-questions": dpg_questions(),
        "wise": wise(),
        "imgedit": imgedit(),
        "imgedit-images": imgedit_images(),
        "gedit-bench": gedit_bench(),
        "t2i-compbench": t2i_compbench(),
        **judge_prompts(),
    }
