"""Faults whose promises other tests keep; with those of `table.py` they are the table of docs/reliability.md."""

RESUMES = "goes on when started again"
SAYS = "one line, exit code 1; "

# What, promise, file, test.
ELSEWHERE = (
    ("SIGKILL of launcher and all ranks", RESUMES, "distributed/test_resume.py", "test_killed_and_resumed"),
    ("SIGKILL of one of two ranks", f"all end, exit code 1; {RESUMES}", "faults/test_faults.py", "test_ranks"),
    ("SIGKILL of the launcher alone", f"its ranks save and end; {RESUMES}", "faults/test_faults.py", "test_ranks"),
    (
        "SIGKILL of `simfle pretrain --processes`",
        f"its processes save and end; {RESUMES}",
        "faults/test_faults.py",
        "test_our_own_launcher",
    ),
    (
        "nobody reads its output any more (`head`, a closed terminal)",
        "goes on in silence",
        "faults/test_faults.py",
        "test_nobody_reads_any_more",
    ),
    (
        "SIGSTOP of a rank, for longer than train.timeout",
        "all end, and name it; the job comes back by itself",
        "cluster/test_pretrain.py",
        "test_comes_back_by_itself",
    ),
    (
        "SIGKILL before any of the file operations of a checkpoint",
        "the newest complete checkpoint is whole",
        "faults/test_faults.py",
        "test_killed_before_each_file_operation",
    ),
    (
        "Slurm: USR2, requeue, SIGKILL of a rank, a node lost",
        "comes back by itself",
        "cluster/test_pretrain.py",
        "test_comes_back_by_itself",
    ),
    (
        "a loss that is not finite",
        f"{SAYS}the last sound state is saved",
        "distributed/test_refusals.py",
        "test_a_loss_that",
    ),
    (
        "damaged JPEGs inside good shards",
        "each replaced by the next sample, counted, named",
        "distributed/test_damaged_ranks.py",
        "test_damage_changes",
    ),
    (
        "damaged shards that stopped a run, restored",
        f"{RESUMES}: samples that can be decoded again no longer count",
        "distributed/test_damaged_ranks.py",
        "test_restored_samples",
    ),
    (
        "read errors, a tar cut while training",
        "as damaged JPEGs",
        "unit/data/test_damaged.py",
        "test_bytes_that_cannot",
    ),
    (
        "a tar in the cache of a URL cut or replaced, its index replaced",
        "fetched again, with a warning",
        "unit/shards/test_shards_cache.py",
        "test_a_damaged_copy",
    ),
    (
        "an HTTP server that sends a manifest without end, or a byte now and then",
        "one line that names the URL, exit code 1",
        "unit/shards/test_shards_web.py",
        "test_a_manifest_without_end",
    ),
    (
        "an HTTP server that redirects in a loop, or to another scheme",
        "one line that names the URL, exit code 1",
        "unit/shards/test_shards_web.py",
        "test_redirects_that_end",
    ),
    ("SIGKILL of a shard build", "the same bytes", "unit/shards/test_shards_resume.py", "test_a_build_killed_anywhere"),
    (
        "SIGKILL before any of the file operations of a shard build",
        "the same bytes",
        "faults/test_builds.py",
        "test_killed_before_file_operations",
    ),
    ("SIGTERM of a build", "the same bytes", "faults/test_builds.py", "test_terminated"),
    ("a read-only folder: a build", f"{SAYS}goes on", "faults/test_builds.py", "test_read_only"),
    (
        "SIGKILL of a worker of a build",
        f"{SAYS}goes on",
        "unit/shards/test_shards_resume.py",
        "test_a_worker_that_dies",
    ),
    ("Ctrl-C of a build", "exit code 130; goes on", "unit/shards/test_shards_resume.py", "test_ctrl_c_keeps"),
    ("disk full: a build", f"{SAYS}goes on", "unit/shards/test_shards_resume.py", "test_a_disk_that_fails"),
    (
        "a second builder on one output",
        f"{SAYS}the first goes on",
        "unit/shards/test_shards_resume.py",
        "test_an_unfini",
    ),
    (
        "disk full: features of an evaluation",
        f"{SAYS}nothing stays",
        "unit/eval/test_eval_kept.py",
        "test_a_full_disk_ends_an_evaluation",
    ),
    (
        "disk full: fingerprints of a search for duplicates",
        f"{SAYS}nothing stays",
        "unit/test_files.py",
        "test_a_full_disk_ends_a_search",
    ),
    (
        "kept features zeroed, cut, of another shape or type",
        "computed again",
        "unit/eval/test_eval_kept.py",
        "test_damaged_features_are_computed_again",
    ),
    (
        "features cut while an evaluation reads them",
        "one line, exit code 1",
        "unit/eval/test_eval_kept.py",
        "test_features_cut_while",
    ),
    (
        "a tar cut while a command reads it",
        "one line, exit code 1",
        "unit/test_files.py",
        "test_a_tar_cut_while",
    ),
    (
        "features that are not finite",
        "one line, exit code 1",
        "unit/eval/test_eval_kept.py",
        "test_features_of_crops_that_are_not_finite",
    ),
    (
        "a result changed by hand",
        f"{SAYS}not scored",
        "unit/eval/test_eval_results.py",
        "test_a_value_changed_by_hand",
    ),
    (
        "one bit of an exported backbone is turned",
        f"{SAYS}not scored",
        "unit/eval/test_eval_backbones.py",
        "test_weights_that_are_not_those_of_the_card",
    ),
    (
        "SIGKILL while features are written",
        "the next start deletes the temporary file",
        "unit/eval/test_eval_kept.py",
        "test_what_a_killed_process_left",
    ),
    (
        "SIGKILL while a result, summary, report, export or beton is written",
        "the next write deletes the temporary file",
        "unit/test_files.py",
        "test_a_killed_writer",
    ),
    ("many random faults, a build and a run", "the same bytes and losses", "soak/test_soak.py", "test_soak"),
    (
        "any of these ends",
        "no process, no file in /dev/shm or the temporary folder stays",
        "faults/test_faults.py",
        "nursery",
    ),
    (
        "many steps, checkpoints and pictures",
        "no growth of memory, open files, threads, shared memory",
        "soak/test_soak.py",
        "test_growth",
    ),
)
