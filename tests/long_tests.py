"""Tests of `make test-all` alone, by the reason why: they take seconds each, and a quicker kin is in `make test`.

Beside these, whatever is long by itself carries the marker `long` where it stands. A name without brackets means every
case of the test.
"""

LONG = {
    "compiles a dozen programs and more; the fast suite has smaller networks, single faults and shorter epochs": (
        "test_gradcheck_network.py::test_faults_everywhere_in_a_deep_network",
        "test_gradcheck_network.py::test_random_stateful_and_integer_layers_that_are_wrong",
        "test_gradcheck_network.py::test_a_wrong_combinator_around_a_wrong_leaf",
        "test_gradcheck_network.py::test_a_random_layer_in_evaluation",
        "test_gradcheck_library.py::test_every_layer_and_combinator_is_right[rnn]",
        "test_gradcheck_library.py::test_every_wrong_rule_is_named[residual: without its skip]",
        "test_gradcheck_library.py::test_every_wrong_rule_is_named[dropout: another mask]",
        "test_graph_libraries.py::test_sixty_layers_and_a_hundred_thousand_parameters",
        "test_graph_page.py::test_five_thousand_operations_can_all_be_opened",
        "test_nonfinite.py::test_rounding_in_one_piece_as_users_compile",
        "test_nonfinite.py::test_no_alarm[determinant of a singular matrix]",
        "test_nonfinite.py::test_no_alarm[cholesky of the identity]",
        "test_nonfinite.py::test_no_alarm[singular values of the identity]",
        "test_nonfinite.py::test_no_alarm[cumulative maximum]",
        "test_nonfinite.py::test_no_alarm[max pooling]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[of_singular_vectors]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[no_factor]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[singular]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[distances]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[clipped_log]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[states_of_a_chain]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[scan_over_padding]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[norm_in_a_scan]",
        "test_nonfinite.py::test_cause_line_and_what_hid_it[where_power]",
        "test_nonfinite.py::test_no_alarm[softmax, partly masked]",
        "test_nonfinite.py::test_no_alarm[softmax, causal]",
        "test_nonfinite.py::test_no_alarm[cumprod with zeros]",
        "test_kinks.py::test_the_table_shows_the_difference",
        "test_gradcheck_plugin.py::test_a_suite_computes_what_it_computes_without_the_flag",
        "test_gradcheck_plugin.py::test_workers_report_to_the_controller",
        "test_diagnostics.py::test_an_ensemble_is_diagnosed_network_by_network",
        "test_diagnostics.py::test_fit_gives_a_diagnosis_for_each",
        "test_watching.py::test_scan_and_vmap_decide_as_fit_does",
        "test_watching.py::test_divergence_is_found_with_the_scale_that_was_in_force",
        "test_training.py::test_ensemble_is_a_loop",
        "test_recurrent.py::test_fit_and_predict_take_sequences",
        "test_steps.py::test_shuffled_is_as_random_as_sorting",
        "test_optimizer_transforms.py::test_fit_with_small_batches_is_fit_with_large_ones_and_goes_on_where_it_stopped",
        "test_losses.py::test_softmax_cross_entropy_does_not_see_a_shift",
    ),
    "repeats for another setting what the fast suite has for one": (
        "test_graph_grads.py::test_functions_of_single_operations",
        *(
            f"test_graph_grads.py::test_every_output_unused_in_turn[{name}]"
            for name in ("svd", "lu", "qr", "slogdet", "a scan in a scan", "vmap of a scan", "top_k", "switch")
        ),
        "test_graph_grads.py::test_functions[a determinant of 0]",
        "test_graph_grads.py::test_what_an_iteration_hands_on[scan whose carries mix]",
        "test_graph_grads.py::test_what_an_iteration_hands_on[scan from the end]",
        "test_graph_flow.py::test_gains_and_losses[explodes-interpolation at one of a thousand]",
        "test_graph_flow.py::test_gains_and_losses[keeps its scale-interpolation]",
        "test_graph_flow.py::test_gains_and_losses[keeps its scale-pooling over an image]",
        "test_graph_page.py::test_it_opens_fitted_to_the_window[small]",
        "test_graph_page.py::test_it_opens_fitted_to_the_window[deep]",
        "test_graph_page.py::test_it_opens_fitted_to_the_window[unfolded]",
        "test_diagnostics.py::test_epoch_measures_the_steps_it_says[3-2-measured1]",
        "test_watching.py::test_divergence_by_augmentation",
        "test_watching.py::test_a_plateau_scales_the_updates[optax's]",
        "test_stopping.py::test_any_metrics_under_scan_and_vmap[stop, relative, maximise]",
        "test_stopping.py::test_any_metrics_under_scan_and_vmap[plateau]",
        "test_stopping.py::test_any_metrics_under_scan_and_vmap[plateau, cooldown, at least]",
        "test_recurrent.py::test_recomputing_takes_a_quarter_of_the_memory[gru]",
        "test_recurrent.py::test_recomputing_takes_a_quarter_of_the_memory[lstm]",
        "test_steps.py::test_an_epoch_lowers_for_every_platform[1030-stablehlo.while]",
        "test_steps.py::test_a_step_lowers_for_every_platform[adam]",
        "test_steps.py::test_a_step_lowers_for_every_platform[nesterov]",
        "test_optimizers.py::test_lowers_for_every_platform",
        "test_graph_page.py::test_every_array_has_a_way_from_where_it_is_made_to_where_it_is_used[micrograd]",
        "test_gradcheck_network.py::test_a_layer_that_refuses_float64[False]",
        "test_gradcheck_network.py::test_two_calls_give_equal_reports",
        "test_gradcheck_evidence.py::test_ties_that_meet_in_one_gradient[0-0-kink]",
        "test_cursor.py::test_an_epoch_that_has_begun_is_finished[fit-6]",
        "test_cursor.py::test_an_epoch_that_has_begun_is_finished[fit-9]",
        "test_cursor.py::test_an_epoch_that_has_begun_is_finished[epoch-6]",
        "test_cursor.py::test_an_epoch_that_has_begun_is_finished[epoch-9]",
        "test_cursor.py::test_a_state_on_two_devices_goes_on[rbg]",
    ),
    "repeats in another precision or with another library what the fast suite has in one": (
        "test_training.py::test_bfloat16_parameters_train",
        "test_optimizer_transforms.py::test_small_batches_are_one_large_one[sgd-float32-1e-06]",
        "test_optimizer_transforms.py::test_small_batches_are_one_large_one[adamw-float32-1e-06]",
        "test_optimizer_transforms.py::test_small_batches_are_one_large_one[clipped-float32-1e-06]",
        "test_kinks.py::test_the_table_shows_optax",
        "test_graph_libraries.py::test_functions_of_other_libraries[equinox LayerNorm]",
        "test_optimizers.py::test_a_thousand_steps_are_those_of_optax[float32-1e-05",
        "test_optimizers.py::test_in_a_flax_program",
        "test_optimizers.py::test_in_an_optax_program",
    ),
}


def is_long(node: str) -> bool:
    """Whether a test, named as pytest names it, is in the table."""
    name = node.rpartition("tests/")[2]
    return any(name == test or name.startswith((f"{test}[", f"{test}-")) for tests in LONG.values() for test in tests)
