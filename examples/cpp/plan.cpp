// A plan by a deadline, from the service on this board.
//
//   g++ -std=c++17 -O2 -o plan plan.cpp
//   ./plan /run/draftwire/draftwire.sock "Command: walk left twice and jump\nPlan:"
//   ./plan 127.0.0.1:8080 "..." --max-tokens 200 --cancel-after 3

#include "draftwire.hpp"

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: plan SOCKET|HOST:PORT PROMPT [--max-tokens N] [--deadline S] "
                 "[--stop TEXT] [--cancel-after PIECES]\n";
    return 2;
  }
  std::string where = argv[1];
  draftwire::Options options;
  options.offline = "draft";
  int cancel_after = -1;
  for (int i = 3; i + 1 < argc; i += 2) {
    std::string flag = argv[i];
    if (flag == "--max-tokens") options.max_tokens = std::atoi(argv[i + 1]);
    if (flag == "--deadline") options.deadline_s = std::atof(argv[i + 1]);
    if (flag == "--stop") options.stop = argv[i + 1];
    if (flag == "--cancel-after") cancel_after = std::atoi(argv[i + 1]);
  }
  std::size_t colon = where.rfind(':');
  draftwire::Service service =
      where[0] == '/' || colon == std::string::npos
          ? draftwire::Service::local(where)
          : draftwire::Service::tcp(where.substr(0, colon), where.substr(colon + 1));
  try {
    int pieces = 0;
    bool verified = true;
    draftwire::Answer answer =
        service.generate(argv[2], options, [&](const draftwire::Piece& piece) {
          verified = piece.verified;
          return ++pieces != cancel_after;
        });
    std::cout << answer.text << "\n";
    std::cerr << answer.finish << (verified ? "" : ", guesses at the end") << "\n";
  } catch (const draftwire::Error& error) {
    std::cerr << "plan: " << error.what() << "\n";
    return 4;
  }
}
