#!/bin/sh
# Compares gin/pretrain_folder.gin with gin/pretrain_r18_tinyimagenet.gin on part of Tiny ImageNet.
#
#   docs/compare/folder_recipe.sh TINY_IMAGENET IMAGES_PER_CLASS OUTPUT [BINDING ...]
#
# TINY_IMAGENET contains train/<class>/<image> and val/<class>/<image>. The subset has links to the
# first images of each class. Both runs are evaluated on val by the same number of neighbors, and
# get the bindings, for example schedule.epochs=200 for the same number of images in both. Prints
# the accuracies before and after training. Run it from the checkout.
set -eu
tiny=$(realpath "$1") per_class=$2 output=$3
shift 3
for class in "$tiny"/train/*/; do
  folder=$output/images/train/$(basename "$class")
  mkdir -p "$folder"
  find "$class" -type f | sort | head -n "$per_class" | xargs -I{} ln -sf {} "$folder"
done
ln -sfn "$tiny/val" "$output/images/val"
neighbors=$((per_class < 20 ? per_class : 20))
set -- "$@" "DATA='$output/images'" "knn_evaluator.neighbors=$neighbors" knn_evaluator.every=0
flags=$(printf ' --gin_bindings=%s' "$@")
for recipe in folder r18_tinyimagenet; do
  # No binding contains white space.
  # shellcheck disable=SC2086
  python -m jigclu.launch --gin_file=gin/pretrain_$recipe.gin --workdir="$output/$recipe" $flags \
    2>&1 | tee "$output/$recipe.log" | grep "knn_accuracy: " | sed "s/^/$recipe: /"
done
