"""The private and fragile names of other packages that the source uses; `test_upstream_names.py` compares the two."""

# Names that their packages ask for in documentation, docstrings or templates: who writes a model, a pipeline or a metric defines
# them. By file, relative to src/chatgpt_hf.
EXTENSION_POINTS: dict[str, str] = {
    # docs/source/en/custom_models.md: what `register_for_auto_class` sets.
    "model/configuration_chatgpt.py": "_auto_class",
    # docs/source/en/add_new_model.md and modular_transformers.md: flags and plans of a model.
    "model/modeling_chatgpt.py": """
        _auto_class _can_compile_fullgraph _can_record_outputs _fsdp_plan _init_weights _keys_to_ignore_on_load_unexpected
        _no_split_modules _pp_plan _skip_keys_device_placement _supports_attention_backend _supports_flash_attn
        _supports_flex_attn _supports_sdpa _tied_weights_keys _tp_plan
    """,
    # docs/source/en/add_new_pipeline.md, and the class attributes of `Pipeline`'s docstring.
    "model/pipelines.py": """
        _default_generation_config _forward _load_feature_extractor _load_image_processor _load_processor _load_tokenizer
        _pipeline_calls_generate _sanitize_parameters
    """,
    # evaluate's template of a new metric.
    "evaluation/metrics/base.py": "_compute _info",
    "evaluation/metrics/bleu.py": "_compute",
    "evaluation/metrics/f1.py": "_compute",
    "evaluation/metrics/rouge.py": "_compute",
    "evaluation/metrics/seqeval.py": "_compute",
    # docs/source/package_reference/builder_classes.mdx of datasets: what a builder of Arrow tables defines.
    "data/columns.py": "_generate_tables _info _split_generators",
    # lm-eval's docs/model_guide.md: the scoring that a `TemplateLM` brings.
    "evaluation/harness.py": "_loglikelihood_tokens",
}

ATTENTION = (
    "the only way to read the attention in use, as transformers' own models do; to set one whose name holds 'flash', which "
    "`set_attn_implementation` takes for a kernel of the Hub"
)
HOOKS = "PyTorch has no public way to ask whether a module has hooks"
FOREACH = "one kernel for many tensors, as torch.optim's own steps; PyTorch has no public name for it"
STATISTICS = "counts by example, for intervals and comparisons; the public scores do not hold them"
TABLE = "read by Trainer and pipelines; `Auto*.register` leaves it as it is"
OPERATOR = "PyTorch packs weights in public only while it compiles (`torch._inductor.config.freezing`)"
CHECKPOINT = "Trainer has no public event before a checkpoint is written, and none in each process while it is"

# Everything else, with the reason why there is no public way. By file, relative to src/chatgpt_hf.
PRIVATE: dict[str, dict[str, str]] = {
    "bounded_templates.py": {
        "transformers.utils.chat_template_utils": "transformers has no other place for a limit on chat templates",
    },
    "evaluation/figures.py": {
        "_compute_score_from_stats": "chrF of summed counts; sacrebleu's public scores take texts"
    },
    "evaluation/metrics/bleu.py": {
        "_extract_corpus_statistics": f"{STATISTICS} together with the warning of cut texts"
    },
    "evaluation/metrics/chrf.py": {"_extract_corpus_statistics": STATISTICS},
    "inference/cpu/attention.py": {
        "_attn_implementation": ATTENTION,
        "mkldnn._linear_pointwise.default": OPERATOR,
    },
    "inference/cache.py": {
        "_is_stateful": "transformers says nowhere else that a model keeps a state of its own kind",
        "_supports_default_dynamic_cache": "what `generate` itself asks; there is no other list of such models",
    },
    "inference/compiling.py": {
        "_compile_all_devices": "`generate` compiles on a CPU only with it",
        "torch._inductor.cpp_builder.get_cpp_compiler": "which compiler `torch.compile` will take is said nowhere else",
        "torch._inductor.exc.InvalidCxxCompiler": "what the function before raises",
        "torch.utils._triton.has_triton": "whether `torch.compile` can use Triton on this device is said nowhere else",
    },
    "inference/cpu/decoder_layer.py": {
        "_attn_implementation": ATTENTION,
        "_forward_hooks": HOOKS,
        "_forward_pre_hooks": HOOKS,
    },
    "inference/cpu/layers.py": {
        "_apply": "`Module.to` and `Module.half` ask nothing else of a module",
        "aten._convert_weight_to_int4pack_for_cpu": OPERATOR,
        "aten._weight_int4pack_mm_for_cpu": OPERATOR,
        "aten._weight_int8pack_mm": OPERATOR,
        "mkldnn._linear_pointwise.default": OPERATOR,
        "mkldnn._reorder_linear_weight": OPERATOR,
        "quantized.linear_dynamic.default._op": f"{OPERATOR}; by `_op` since `torch.ops` adds 6 microseconds to each call",
        "quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op": f"{OPERATOR}; see above",
        "quantized.linear_prepack": OPERATOR,
        "torch._make_per_channel_quantized_tensor": "`torch.quantize_per_channel` wants the weight in float first",
        "torch.cpu._is_vnni_supported": "`torch.cpu.get_capabilities` is not in PyTorch 2.6, the oldest that is allowed",
    },
    "inference/cpu/packed_linear.py": {
        "_forward_hooks": HOOKS,
        "_forward_pre_hooks": HOOKS,
        "mkldnn._is_mkldnn_bf16_supported": "oneDNN's answer, which its environment variables change; no public name",
    },
    "interpretability/attention_maps.py": {"_attn_implementation": ATTENTION},
    "model/modeling_chatgpt.py": {
        "_apply": "`Module.to` and `Module.half` ask nothing else of a module; inverse frequencies stay in float32",
        "_attn_implementation": ATTENTION,
        "_buffers": "puts a buffer back as it was: `register_buffer` refuses a name that there is, assignment forgets `persistent`",
        "_forward_hooks": HOOKS,
        "_forward_pre_hooks": HOOKS,
        "_writes_residual": "not PyTorch's but our own mark, on a `Linear`, whose class has to stay the plain one",
    },
    "model/pipelines.py": {
        "_prepare_generate_kwargs": "every pipeline of transformers' that generates calls it, and lets a caller's parameters win",
        "transformers.pipelines.REMOVED_TASKS": "its names are refused before registered pipelines are looked for",
    },
    "model/__init__.py": {
        "sys.modules['transformers']": "`transformers serve` and TRL look models up as `transformers.NAME`",
    },
    "registration.py": {
        "transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES": TABLE,
        "sys.modules['transformers']": "Trainer, `transformers serve` and TRL look models up as `transformers.NAME`",
        "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": TABLE,
        "transformers.models.auto.modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": TABLE,
        "transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": TABLE,
        "transformers.models.auto.modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": TABLE,
        "transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES": TABLE,
    },
    "training/distill.py": {
        "_generate": "TRL has no public way to give DistillationTrainer answers that exist already",
        "_generate_single_turn": "DistillationTrainer's sampling, which `_generate` does not call for such answers",
        "_get_eval_sampler": "TRL shuffles the held-out rows anew in each evaluation",
        "_get_train_sampler": "TRL's order of a later epoch depends on the epochs before, which a resumed run has not seen",
    },
    "training/dpo.py": {"_prepare_dataset": "TRL has no public way to give DPOTrainer and KTOTrainer tokenized rows"},
    "training/recipe.py": {
        "_setup_devices": "defaults without setting up devices anew; `TrainingArguments` has no switch"
    },
    "training/sharding.py": {
        "_load_best_model": "Trainer has no public event before it loads the best checkpoint",
        "_load_from_checkpoint": "Trainer reads only the weights that its own kind of run has saved",
        "_load_optimizer_and_scheduler": "Trainer reads only the state that its own kind of run has saved",
        "_save_optimizer_and_scheduler": "Trainer saves a sharded optimizer in a form that one process cannot read",
    },
    "training/optim.py": {
        "torch._foreach_add_": FOREACH,
        "torch._foreach_lerp": FOREACH,
        "torch._foreach_lerp_": FOREACH,
        "torch._foreach_mul_": FOREACH,
    },
    "training/resuming.py": {
        "_get_output_dir": "where a trial of a hyperparameter search saves",
        "_load_best_model": "Trainer has no public event before it loads the best checkpoint",
        "_save_checkpoint": CHECKPOINT,
    },
    "training/rollouts.py": {
        "_generate_single_turn": "where both trainers sample; RLOOTrainer has no `rollout_func`, which we take for tools only, as it is experimental",
        "_get_train_sampler": "its sampler begins anew in a run that resumes in a later epoch",
    },
    "training/run.py": {
        "_load_from_checkpoint": "a finished run takes its last checkpoint without a step more; `Trainer.train` takes one"
    },
    "training/scaling.py": {
        "torch._subclasses.fake_tensor.FakeTensorMode": "PyTorch documents it by this name (torch.compiler_fake_tensor)"
    },
    "training/trainer.py": {
        "_save_checkpoint": CHECKPOINT,
        "_save_rng_state": CHECKPOINT,
        "_train_batch_size": "rows of a batch as `auto_find_batch_size` set them; `args` keeps the number that was given",
    },
}
