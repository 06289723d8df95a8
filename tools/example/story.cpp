// Continues a text with a model: story MODEL.gguf [TEXT]
#include <hotset/engine.h>

#include <exception>
#include <iostream>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: story MODEL.gguf [TEXT]\n";
    return 2;
  }
  try {
    const auto model = hotset::Model::load(argv[1]);
    const auto engine = hotset::Engine::create(model, {});
    hotset::GenerateOptions options;
    options.max_tokens = 64;
    options.sampler.temperature = 0;
    hotset::Generation generation(engine, {model->tokenizer().encode(argc > 2 ? argv[2] : "Once upon a time")}, options);
    while (generation.next())
      for (const hotset::GeneratedToken& token : generation.tokens()) std::cout << token.text << std::flush;
    std::cout << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "story: error: " << error.what() << "\n";
    return 1;
  }
}
