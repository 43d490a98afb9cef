"""The kinds of fault that the campaign covers, and the tests that try them.

One table: `make reliability` runs these tests, adds up their cases by kind and writes docs/reliability.md from it.
`number` is that of the pass mark in the project's list of demanded tests (R training, D data, K kernels,
W workflow, S security); kinds without one were found since.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """One row of the page."""

    number: str
    area: str
    fault: str
    holds: str
    tests: tuple[str, ...]


TRAINING, STAGES, DATA = "Training", "Stages, caches and kept work", "Data and pictures"
MODELS, NETWORK, JUDGES = "Weights and models", "Downloads", "Judges"
WORKFLOW, FILES = "Workflow and machine", "Code, configuration and files"

FAULTS = "tests/faults/"


def tests(file: str, *names: str) -> tuple[str, ...]:
    """Tests of one file, without the words that all have in common."""
    return tuple(f"tests/{file}.py::test_{name}" for name in names)


KINDS = (
    # ---- training --------------------------------------------------------------------------------
    Kind("R1", TRAINING, "SIGKILL of training at a random moment or inside an accumulation",
         "resumed run equals the undisturbed one: losses, weights, moments, averages, bit for bit",
         tests("align/test_resume", "killed_at_random_times", "killed_run_continues_bit_for_bit",
               "three_sittings_equal_one")),
    Kind("R1", TRAINING, "SIGKILL of each model family inside an accumulation, inside an epoch, between epochs",
         "resumed run equals the undisturbed one bit for bit",
         tests("faults/test_family_kills", "killed_families_resume_bit_for_bit")
         + tests("align/test_harmon", "resumed_bit_for_bit_with_dropout")
         + tests("align/test_showo", "photographs_are_learned_and_resumed_exactly")),
    Kind("R2", TRAINING, "process gone before or after each file operation of a checkpoint save",
         "the newest whole checkpoint opens with all hashes",
         tests("align/test_checkpoint", "crash_at_every_file_operation")),
    Kind("R2", TRAINING, "I/O error at each file operation of a checkpoint save",
         "one error with path and bytes; the former checkpoint loads",
         tests("align/test_checkpoint", "error_at_every_file_operation")),
    Kind("R3", TRAINING, "full disk, file size limit, read-only folder, a file in place of the folder",
         "one error with path and bytes; the former checkpoint loads",
         tests("align/test_checkpoint", "disk_known_to_be_full", "disk_fills_up_while_writing",
               "read_only_folder", "folder_that_is_a_file")),
    Kind("R4", TRAINING, "SIGTERM, SIGUSR1, SIGUSR2, and several at once",
         "checkpoint at the end of the step, the documented exit code, no step lost",
         tests("align/test_resume", "signal_saves_and_asks_for_requeue", "handlers_are_restored")),
    Kind("R5", TRAINING, "one changed byte in any file of a checkpoint",
         "found, with the file's name",
         tests("align/test_checkpoint", "every_flipped_byte_is_found_and_named")),
    Kind("R5", TRAINING, "missing, truncated, foreign and replaced files in a checkpoint",
         "found with the file's name; the newest whole checkpoint is taken",
         tests("align/test_checkpoint", "missing_and_truncated_files_are_named",
               "newest_valid_wins_and_broken_ones_are_set_aside")),
    Kind("R6", TRAINING, "resume under another configuration, model, data or seed, or beside a running process",
         "refused with the changed fields",
         tests("align/test_resume", "resume_of_another_run_is_refused_by_field",
               "two_processes_do_not_train_in_one_folder")
         + tests("align/test_trainer", "weights_that_the_model_lacks_are_refused")),
    Kind("R7", TRAINING, "purging of old checkpoints: broken newer names, failing removal",
         "the only whole checkpoint stays",
         tests("align/test_checkpoint", "keeps_the_last_k", "failed_purge_is_survived_and_done_later",
               "the_only_valid_one_stays_though_newer_names_exist")),
    Kind("", TRAINING, "losses that are not finite; wrong token counts",
         "the run stops with the names of the samples, or skips and counts as configured",
         tests("align/test_trainer", "nan_stops_the_run_and_names_the_samples",
               "nan_steps_can_be_skipped_and_are_counted", "too_many_skipped_steps_stop_the_run",
               "a_wrong_token_count_is_noticed")),
    # ---- stages ----------------------------------------------------------------------------------
    Kind("R1", STAGES, "SIGKILL while pictures are drawn or questions answered, at each write",
         "no finished picture is drawn again; output equals the undisturbed one",
         tests("faults/test_stage_kills", "killed_drawing_goes_on", "killed_answering_goes_on")
         + tests("test_kept", "a_kill_inside_a_batch_changes_no_byte_and_repeats_no_picture")),
    Kind("D4", STAGES, "SIGKILL while a cache of features is built, at each file operation",
         "the next build goes on; the cache equals an undisturbed one",
         tests("faults/test_stage_kills", "killed_cache_building_goes_on")
         + tests("test_cache", "a_killed_build_goes_on_where_it_was")),
    Kind("D4", STAGES, "four processes build one cache at the same time",
         "one whole cache",
         tests("test_cache", "four_writers_give_one_cache")),
    Kind("D4", STAGES, "other encoder, transform, use, precision, picture or code",
         "the cache is made anew",
         tests("test_cache", "every_mutation_is_a_miss", "another_encoder_is_refused_when_opened")),
    Kind("R3", STAGES, "the disk fills up at each fsync of a cache, of a stage, of a picture set, of a record",
         "one error with the path; nothing half written counts",
         tests("test_cache", "a_full_disk_gives_one_clear_error_and_no_cache")
         + tests("test_records", "a_full_disk_is_one_clear_error",
                 "a_full_disk_names_the_stage_and_leaves_nothing")
         + tests("test_imageset", "a_full_disk_names_the_set")),
    Kind("R5", STAGES, "one changed byte in any file of a cache, also of unfinished work",
         "found, with the file's name",
         tests("test_cache", "every_flipped_byte_is_found_with_its_file",
               "a_damaged_shard_of_unfinished_work_is_encoded_again", "a_damaged_cache_is_repaired_by_the_next_build")),
    Kind("R5", STAGES, "one changed byte in any file of a results folder",
         "found by the audit and by whatever reads it",
         tests("faults/test_flips", "a_changed_byte_of_a_results_folder_is_found")
         + tests("test_audit", "any_edit_of_any_file_is_found")
         + tests("test_verbs", "a_flipped_bit_stops_whatever_reads_it")
         + tests("test_records", "every_change_is_named")),
    Kind("R5", STAGES, "damaged pictures and rows of unfinished work",
         "made again or refused, never believed",
         tests("test_kept", "only_whole_pictures_of_the_recipe_count",
               "rows_survive_a_torn_end_and_foreign_rows_are_named")),
    Kind("W4", STAGES, "a killed writer's scratch folder",
         "removed by the next writer of that output only",
         tests("test_records", "what_a_killed_writer_left_is_removed_by_the_next",
               "a_kill_between_the_renames_is_no_stage", "a_failed_stage_leaves_the_former_one")),
    # ---- data ------------------------------------------------------------------------------------
    Kind("D1", DATA, "other numbers of workers, ranks and restarts",
         "the same order; each sample once an epoch",
         tests("data/test_order", "the_order_does_not_depend_on_workers", "ranks_share_an_epoch_without_overlap",
               "a_run_of_four_ranks_resumes_on_three", "take_agrees_with_iterate_from_any_position")),
    Kind("D2", DATA, "stop inside a shard or an epoch, with reading ahead",
         "no sample twice, none lost",
         tests("data/test_tar", "resume_inside_a_shard_with_prefetch")
         + tests("data/test_order", "resume_with_prefetch_neither_repeats_nor_loses",
                 "a_fault_surfaces_at_its_own_item_and_threads_end")),
    Kind("D3", DATA, "corrupt pictures in a data set",
         "skipped, counted, named; too many stop the run",
         tests("data/test_readers", "corrupt_pictures_are_skipped_counted_and_named",
               "too_many_corrupt_pictures_stop_the_run_at_the_first_one_too_many",
               "by_default_one_in_a_thousand_may_be_corrupt")
         + tests("test_cache", "unreadable_images_are_counted_and_left_out", "too_many_unreadable_images_fail",
                 "the_limit_counts_over_sittings")),
    Kind("D3", DATA, "odd but whole pictures: CMYK, 16 bits, palettes, animations, rotations, 1 x 1, 20,000 x 2",
         "the defined pixels",
         tests("test_images", "every_mode_becomes_rgb", "cmyk_jpeg_keeps_its_colours",
               "of_16_bit_samples_the_high_byte_is_kept", "transparency_is_composited_on_white",
               "palette_transparency_counts_too", "animations_give_their_first_frame", "exif_orientation_is_applied",
               "extreme_shapes_have_a_defined_result", "a_damaged_exif_block_leaves_the_image_as_stored")),
    Kind("S4", DATA, "hostile pictures: huge claims, text bombs, renamed and joined files",
         "refused by name within 1 s and 200 MB",
         tests("test_images", "hostile_or_damaged_bytes_are_refused_quickly_and_by_name",
               "our_limit_holds_when_another_library_lifts_that_of_pillow")),
    Kind("S4", DATA, "pictures with random damage",
         "RGB or refused by name, within 1 s",
         tests("faults/test_damaged_files", "damaged_pictures_are_rgb_or_refused")),
    Kind("S3", DATA, "hostile tar archives: paths out of the folder, links, devices, doubled names, huge claims, cuts",
         "refused by name, nothing unpacked",
         tests("data/test_tar", "hostile_members_are_refused", "ten_gigabyte_headers_are_refused",
               "truncated_archives_are_refused", "compressed_and_foreign_files_are_refused",
               "a_damaged_header_in_the_middle_does_not_end_the_archive")
         + tests("test_imageset", "odd_tar_files_are_refused")
         + tests("data/test_archives", "a_zip_bomb_is_not_inflated")),
    Kind("S3", DATA, "archives, tables, conversations and weights with random damage",
         "read, or one error that names the file",
         tests("faults/test_damaged_files", "damaged_containers_are_read_or_named")),
    # ---- models ----------------------------------------------------------------------------------
    Kind("S2", MODELS, "pickles that run a command when opened: ten ways in eight formats",
         "refused by name; the command never runs",
         tests("faults/test_pickles", "no_pickle_runs_anything")
         + tests("models/test_showo_weights", "a_malicious_pickle_is_refused")),
    Kind("S2", MODELS, "pickles without a hash, with a wrong one, cut, or of other content",
         "refused by name",
         tests("models/test_showo_weights", "a_pickle_needs_its_hash",
               "only_a_flat_dict_of_tensors_is_a_checkpoint", "an_old_torch_opens_no_pickle",
               "a_damaged_pickle_is_named")),
    Kind("S6", MODELS, "safetensors headers: oversized, overlapping, beyond the end, no JSON",
         "refused by name",
         tests("test_cache", "malformed_safetensors_name_the_file")
         + tests("models/test_showo_weights", "a_damaged_safetensors_file_is_named",
                 "a_safetensors_file_with_another_hash_is_refused", "a_folder_must_hold_one_checkpoint")),
    Kind("", MODELS, "checkpoints with missing, surplus or reshaped tensors",
         "refused by name, nothing loaded",
         tests("models/test_showo_weights", "faults_are_named_and_nothing_is_loaded",
               "our_prefixless_clip_names_are_not_official")
         + tests("models/test_bagel_weights", "a_checkpoint_that_does_not_fit_changes_nothing")),
    # ---- downloads -------------------------------------------------------------------------------
    Kind("S5", NETWORK, "servers: wrong hash, short and endless bodies, pages instead of files, errors, stalls",
         "retried or refused; no wrong file is ever left",
         tests("test_downloads", "wrong_hash_leaves_nothing", "wrong_hash_keeps_the_old_file",
               "short_body_that_never_grows_is_given_up", "short_body_of_an_honest_looking_server_is_refused",
               "body_beyond_the_pinned_size_is_cut_off", "5xx_then_success", "5xx_for_ever",
               "retry_after_is_obeyed_up_to_the_limit", "4xx_is_final", "html_page_by_its_type",
               "html_page_by_its_body", "compressed_transfer_is_refused", "stall_times_out_and_resumes",
               "stall_before_the_head_is_given_up", "nobody_listens")),
    Kind("S5", NETWORK, "redirects and addresses: files, other schemes, loopback, loops; names that leave the folder",
         "refused",
         tests("test_downloads", "redirect_off_the_allowed_schemes", "redirect_rules",
               "relative_redirect_is_followed_and_a_loop_is_not", "addresses_that_are_refused",
               "names_that_leave_the_folder")),
    Kind("S5", NETWORK, "hubs: other content under a pinned commit, moved commits, wrong mirrors, damaged locks",
         "refused by name; nothing arrives in part",
         tests("sources/test_sources", "content_that_changed_under_the_commit_is_refused",
               "interrupted_fetch_keeps_what_it_had", "hub_names_that_leave_the_folder_are_refused",
               "stated_revision_must_be_what_the_hub_gives", "lock_that_contradicts_the_catalogue", "damaged_locks",
               "mirror_with_a_wrong_file_is_not_forgiven", "unpinned_is_refused_without_a_request")),
    Kind("R3", NETWORK, "the disk fills up before or during a download, or two processes share it",
         "one error; what arrived is kept",
         tests("test_downloads", "full_disk_is_seen_before_the_transfer",
               "full_disk_in_the_middle_keeps_the_part", "two_processes_do_not_share_a_part",
               "resumed_by_a_later_call")),
    Kind("W10", NETWORK, "sources without revision, hash or licence",
         "refused",
         tests("sources/test_catalogue", "every_entry_states_origin_revision_and_licence", "wrong_entries",
               "no_remote_code_is_ever_fetched")),
    # ---- judges ----------------------------------------------------------------------------------
    Kind("S7", JUDGES, "generated replies",
         "a score in range or none, never a guess",
         tests("faults/test_judge_replies", "generated_replies_give_a_score_in_range_or_none")),
    Kind("S7", JUDGES, "replies of real shapes, and very long ones",
         "the score written down for each, at once",
         tests("faults/test_judge_replies", "real_shapes_give_what_is_written_down")
         + tests("benchmarks/test_replies", "very_long_replies_take_no_time")),
    Kind("S7", JUDGES, "unreadable, refused, failed and absent replies",
         "counted once each; no score stands for them",
         tests("benchmarks/test_replies", "every_request_is_counted_once",
               "what_cannot_be_read_is_counted_by_every_grader", "options_never_replace_a_score")),
    Kind("S7", JUDGES, "endpoints: errors, stalls, cut and foreign bodies, refusals",
         "asked again, recorded as a refusal, or one error",
         tests("benchmarks/judges/test_endpoint", "trouble_on_the_way_is_asked_again",
               "it_gives_up_after_the_configured_tries", "nobody_there", "an_empty_text_is_a_reply_whose_cost_counts",
               "a_refusal_is_a_refusal", "what_asking_again_cannot_mend_stops_at_once",
               "a_configuration_that_cannot_work", "usage_that_is_no_count_is_left_out")),
    Kind("S8", JUDGES, "keys echoed by servers, in wrong form, or of another host",
         "not even a prefix in errors, logs, replies and files",
         tests("benchmarks/judges/test_endpoint", "the_key_is_never_shown",
               "a_key_that_no_header_can_carry_is_refused_unshown", "a_reply_that_holds_the_key_is_kept_without_it",
               "a_netrc_does_not_take_the_place_of_the_key")
         + tests("benchmarks/judges/test_ledger", "the_key_is_in_no_file")
         + tests("test_downloads", "token_stays_with_its_origin_and_out_of_logs")
         + tests("sources/test_sources", "token_from_the_environment_is_sent_and_never_kept")),
    Kind("S9", JUDGES, "caps on cost",
         "never passed; the next run goes on",
         tests("benchmarks/judges/test_ledger", "the_cap_stops_before_it_is_passed_and_the_next_run_goes_on",
               "without_an_estimate_one_request_goes_ahead_and_the_cap_holds",
               "a_cap_over_an_endpoint_that_counts_nothing_stops_at_once", "empty_replies_count_against_the_cap")),
    Kind("S9", JUDGES, "SIGKILL while a judge is asked; a ledger cut at every byte, damaged, on a full disk",
         "nothing is paid twice; damage is named",
         tests("benchmarks/judges/test_ledger", "killed_again_and_again_nothing_is_paid_twice",
               "an_unfinished_last_line_is_cut_off_at_every_place", "damage_before_the_end_is_named",
               "a_full_disk_leaves_the_ledger_whole", "one_writer_at_a_time", "a_disk_without_locks_is_named",
               "equal_questions_are_paid_for_once_even_at_the_same_time")),
    # ---- workflow --------------------------------------------------------------------------------
    Kind("W4", WORKFLOW, "SIGKILL of the workflow's driver, alone or with its jobs, at random times",
         "the next run ends with the hashes of an undisturbed one",
         tests("workflow/test_smoke", "killed_at_random_times_it_ends_with_the_same_hashes",
               "killed_again_and_again_it_ends_with_the_same_hashes")),
    Kind("W4", WORKFLOW, "marks and locks of dead, living and foreign runs",
         "only a dead run's are removed",
         tests("workflow/test_environment", "only_what_a_dead_run_left_behind_is_removed")),
    Kind("W6", WORKFLOW, "blanks and foreign letters in paths, no HOME, another locale and time zone",
         "the plan as everywhere; jobs run the code of their checkout",
         tests("workflow/test_environment", "a_plan_in_a_folder_with_blanks_without_home_in_another_locale",
               "jobs_run_the_code_of_their_own_checkout", "a_failing_job_says_why_and_leaves_nothing")),
    Kind("W8", WORKFLOW, "a damaged DVC remote; an unfinished experiment",
         "found by the pull; not recorded",
         tests("workflow/test_smoke", "a_damaged_remote_is_found_by_the_pull",
               "record_refuses_an_unfinished_experiment")),
    # ---- code and configuration ------------------------------------------------------------------
    Kind("S1", FILES, "code that would unpickle, evaluate, unpack or run what it reads",
         "there is none",
         tests("faults/test_code_rules", "no_module_runs_or_unpacks_what_it_reads",
               "no_rule_of_the_workflow_does")),
    Kind("", FILES, "mistakes in experiments and on the command line",
         "one line with the place and what is allowed",
         tests("test_config", "mistake_gets_one_line", "mistake_in_an_override_gets_the_same_line",
               "a_file_that_is_no_yaml_is_named_with_its_line")
         + tests("test_verbs", "bad_input_is_one_line_that_names_it", "missing_pieces_are_named",
                 "sections_and_experiments_that_are_wrong_are_one_line")
         + tests("workflow/test_environment", "a_mistake_in_config_is_one_line_with_what_is_allowed")),
    Kind("", FILES, "work folders that hold more than a stage's own work",
         "nothing foreign is removed",
         tests("test_verbs", "a_stage_removes_no_work_but_its_own", "a_work_folder_that_holds_more_is_refused")),
    Kind("S10", FILES, "scripts in prompts and titles; anything fetched by the report",
         "escaped; nothing is fetched",
         tests("report/test_page", "what_comes_from_files_is_escaped", "nothing_comes_from_elsewhere")
         + tests("report/test_paper", "the_page_opens_offline_and_escapes")),
    Kind("S11", FILES, "dependencies without exact pins",
         "there are none",
         tests("test_packaging", "lock_fulfils_bounds", "direct_pins_are_those_of_the_lock")),
)  # fmt: skip
