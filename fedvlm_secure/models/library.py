"""Classes of ``transformers`` with what keeps them from being trained or loaded here put right."""

from typing import Any

import torch
from transformers import BlipForQuestionAnswering, ProcessorMixin


class BlipForAnswers(BlipForQuestionAnswering):
    """BLIP-VQA whose forward gives logits, and in which padding counts for nothing.

    The library's forward gives nothing but the mean loss. Its cross-attention drops the mask (transformers 5.23), so
    that an answer would depend on how far its question was padded, and so on the other rows of its batch.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, module in self.named_modules():
            if name.endswith(".crossattention.self"):
                module.register_forward_pre_hook(_with_mask, with_kwargs=True)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> Any:
        """The decoder's output, with ``logits`` float [B, K, vocabulary], where ``decoder_input_ids`` is [B, K]."""
        seen = self.vision_model(pixel_values=pixel_values).last_hidden_state
        read = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return self.text_decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=read,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )


def _with_mask(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a cross-attention is called with, its mask also under the name that it reads."""
    mask = kwargs.get("encoder_attention_mask")
    return args, kwargs | {"encoder_attention_mask": kwargs.get("attention_mask") if mask is None else mask}


class QwenVLPictureProcessor(ProcessorMixin):
    """Qwen2-VL's and Qwen2.5-VL's processor without videos: the library's needs torchvision for them."""

    return_mm_token_type_ids = True

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes from here."""
        return [*super().model_input_names, "mm_token_type_ids"]

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """As many image tokens as the picture has groups of merge² patches; the base class calls this."""
        patches = int(image_inputs["image_grid_thw"][image_idx].prod())
        return str(self.image_token * (patches // self.image_processor.merge_size**2))
