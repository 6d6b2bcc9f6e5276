"""Send main_linear.py to a Slurm cluster; see run_with_submitit.py.

python run_with_submitit_linear.py --arch vit_base_patch16_224 --dataset imagenet --pretrained /path/to/checkpoint.pt
"""

import options

if __name__ == "__main__":
    ARGS = options.parse(options.add_slurm(options.linear_parser()))
    from run_with_submitit import launch_or_exit

    launch_or_exit("main_linear", ARGS)
