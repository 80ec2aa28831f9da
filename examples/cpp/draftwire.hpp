// A client of `draftwire service` for C++17 control stacks: one header, POSIX sockets, no
// libraries. It speaks the service's HTTP (docs/service.md) over the local socket or TCP.
//
//   draftwire::Service service = draftwire::Service::local();           // or ::tcp(host, port)
//   draftwire::Answer answer = service.generate("Command: ...", options, [&](const Piece& p) {
//     ...                        // false ends the text, within a token
//     return true;
//   });
//
// A call blocks until its text is over: give it a thread of its own, and `deadline_s`.

#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

namespace draftwire {

struct Options {
  int max_tokens = 64;
  double deadline_s = 0;     // 0: none
  double temperature = 0;
  long seed = -1;            // -1: the service's
  std::string stop;          // "": none
  std::string offline;       // wait, draft or error; "": the service's
};

struct Piece {
  std::string text;          // UTF-8
  bool verified = true;      // false: a guess of the draft alone
  long revision = -1;        // not -1: all after so many tokens is void ...
  std::string kept_text;     // ... and this is the whole text up to there
};

struct Answer {
  std::string text;
  std::string finish;        // stop, length, deadline, cancelled, budget
};

class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\', out += static_cast<char>(c);
    } else if (c < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

inline void utf8(std::string& out, std::uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 63));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 63));
    out += static_cast<char>(0x80 | (c & 63));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 63));
    out += static_cast<char>(0x80 | (c >> 6 & 63));
    out += static_cast<char>(0x80 | (c & 63));
  }
}

// A reader of JSON that finds members of objects and leaves the rest alone.
class Json {
 public:
  explicit Json(const std::string& text) : s_(text) {}

  // Where the value of member `name` of the object at `at` begins, or npos.
  std::size_t member(std::size_t at, const std::string& name) const {
    at = blank(at);
    if (at >= s_.size() || s_[at] != '{') return std::string::npos;
    at = blank(at + 1);
    while (at < s_.size() && s_[at] == '"') {
      std::string key = string(at);
      at = blank(skip(at));                    // the colon
      at = blank(at + 1);
      if (key == name) return at;
      at = blank(skip(at));
      if (at < s_.size() && s_[at] == ',') at = blank(at + 1);
    }
    return std::string::npos;
  }

  std::size_t first(std::size_t at) const {    // the first item of the array at `at`
    at = blank(at);
    if (at >= s_.size() || s_[at] != '[') return std::string::npos;
    at = blank(at + 1);
    return at < s_.size() && s_[at] != ']' ? at : std::string::npos;
  }

  std::string string(std::size_t at) const {   // "" for null and what is no string
    std::string out;
    if (at >= s_.size() || s_[at] != '"') return out;
    for (++at; at < s_.size() && s_[at] != '"'; ++at) {
      if (s_[at] != '\\') {
        out += s_[at];
        continue;
      }
      char c = s_[++at];
      const char* found = std::strchr("b\bf\fn\nr\rt\t", c);
      if (c == 'u') {
        std::uint32_t code = hex(at + 1);
        at += 4;
        if (code >> 10 == 0x36 && s_.compare(at + 1, 2, "\\u") == 0) {
          code = 0x10000 + ((code & 0x3FF) << 10) + (hex(at + 3) & 0x3FF);
          at += 6;
        }
        utf8(out, code);
      } else {
        out += found && *found ? found[1] : c;
      }
    }
    return out;
  }

  bool is(std::size_t at, const char* word) const {
    return at != std::string::npos && s_.compare(at, std::strlen(word), word) == 0;
  }

  long number(std::size_t at, long otherwise) const {
    if (at == std::string::npos || is(at, "null")) return otherwise;
    return std::strtol(s_.c_str() + at, nullptr, 10);
  }

 private:
  std::size_t blank(std::size_t at) const {
    while (at < s_.size() && std::strchr(" \t\r\n", s_[at])) ++at;
    return at;
  }

  std::size_t skip(std::size_t at) const {     // behind the value at `at`
    int depth = 0;
    for (; at < s_.size(); ++at) {
      char c = s_[at];
      if (c == '"') {
        for (++at; at < s_.size() && s_[at] != '"'; ++at) at += s_[at] == '\\';
        if (!depth) return at + 1;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        if (!depth) return at;
        if (!--depth) return at + 1;
      } else if (!depth && std::strchr(", \t\r\n:", c)) {
        return at;
      }
    }
    return at;
  }

  std::uint32_t hex(std::size_t at) const {
    return static_cast<std::uint32_t>(std::stoul(s_.substr(at, 4), nullptr, 16));
  }

  const std::string& s_;
};

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(const Socket&) = delete;
  ~Socket() { ::close(fd_); }

  void send(const std::string& data) {
    for (std::size_t sent = 0; sent < data.size();) {
      ssize_t n = ::send(fd_, data.data() + sent, data.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) throw Error("the service hung up");
      sent += static_cast<std::size_t>(n);
    }
  }

  bool line(std::string& out) {                // without its end; false: no more
    std::size_t end;
    while ((end = held_.find('\n')) == std::string::npos) {
      char part[4096];
      ssize_t n = ::recv(fd_, part, sizeof part, 0);
      if (n <= 0) return false;
      held_.append(part, static_cast<std::size_t>(n));
    }
    out = held_.substr(0, end);
    held_.erase(0, end + 1);
    if (!out.empty() && out.back() == '\r') out.pop_back();
    return true;
  }

 private:
  int fd_;
  std::string held_;
};

}  // namespace detail

class Service {
 public:
  // The service of this board, where systemd's unit has its socket.
  static Service local(std::string path = "/run/draftwire/draftwire.sock") {
    return Service(std::move(path), "", "");
  }
  static Service tcp(std::string host, std::string port) {
    return Service("", std::move(host), std::move(port));
  }

  // Continue `prompt`; `each` gets the pieces, and ends the text by returning false.
  // Throws Error with the service's sentence.
  Answer generate(const std::string& prompt, const Options& options,
                  const std::function<bool(const Piece&)>& each) const {
    using detail::Json;
    detail::Socket socket(open());
    std::string body = "{\"prompt\": " + detail::quoted(prompt) + ", \"stream\": true" +
                       ", \"max_tokens\": " + std::to_string(options.max_tokens) +
                       ", \"temperature\": " + std::to_string(options.temperature);
    if (options.seed >= 0) body += ", \"seed\": " + std::to_string(options.seed);
    if (!options.stop.empty()) body += ", \"stop\": " + detail::quoted(options.stop);
    std::string own;
    if (options.deadline_s > 0) own += "\"deadline_s\": " + std::to_string(options.deadline_s);
    if (!options.offline.empty()) {
      own += (own.empty() ? "" : ", ") + ("\"offline\": " + detail::quoted(options.offline));
    }
    if (!own.empty()) body += ", \"draftwire\": {" + own + "}";
    body += "}";
    socket.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                "Content-Type: application/json\r\nContent-Length: " +
                std::to_string(body.size()) + "\r\n\r\n" + body);

    std::string line;
    if (!socket.line(line) || line.compare(0, 5, "HTTP/") != 0) {
      throw Error("what listens there is no service of draftwire");
    }
    bool good = line.find(" 200") != std::string::npos;
    while (socket.line(line) && !line.empty()) {
    }
    Answer answer;
    std::string refused;
    while (socket.line(line)) {
      if (!good) {
        refused += line;
        continue;
      }
      if (line.compare(0, 6, "data: ") != 0) continue;  // chunk sizes, blank lines
      std::string data = line.substr(6);
      if (data == "[DONE]") return answer;
      fail(data);
      Json json(data);
      std::size_t choice = json.first(json.member(0, "choices"));
      if (choice == std::string::npos) continue;
      std::size_t own_part = json.member(choice, "draftwire");
      Piece piece;
      piece.text = json.string(json.member(choice, "text"));
      piece.verified = !json.is(json.member(own_part, "verified"), "false");
      piece.revision = json.number(json.member(own_part, "revision"), -1);
      piece.kept_text = json.string(json.member(own_part, "kept_text"));
      answer.text = (piece.revision < 0 ? answer.text : piece.kept_text) + piece.text;
      std::string finish = json.string(json.member(own_part, "finish"));
      if (finish.empty()) finish = json.string(json.member(choice, "finish_reason"));
      if (!finish.empty()) answer.finish = finish;
      if (!each(piece)) {                      // hanging up cancels within a token
        answer.finish = "cancelled";
        return answer;
      }
    }
    fail(refused.substr(std::min(refused.find('{'), refused.size())));
    throw Error("the service hung up");
  }

 private:
  Service(std::string path, std::string host, std::string port)
      : path_(std::move(path)), host_(std::move(host)), port_(std::move(port)) {}

  static void fail(const std::string& data) {
    detail::Json json(data);
    std::size_t error = json.member(0, "error");
    if (error == std::string::npos || json.is(error, "null")) return;
    throw Error(json.string(json.member(error, "message")));
  }

  int open() const {
    if (!path_.empty()) {
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      if (path_.size() >= sizeof address.sun_path) throw Error("too long a path: " + path_);
      std::strcpy(address.sun_path, path_.c_str());
      int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (fd >= 0 && ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
        return fd;
      }
      if (fd >= 0) ::close(fd);
      throw Error("no service listens at " + path_ + ": " + std::strerror(errno));
    }
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (::getaddrinfo(host_.c_str(), port_.c_str(), &hints, &found) != 0) {
      throw Error("the name of " + host_ + " cannot be looked up");
    }
    int fd = -1;
    for (addrinfo* a = found; a && fd < 0; a = a->ai_next) {
      fd = ::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
      if (fd >= 0 && ::connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
        ::close(fd);
        fd = -1;
      }
    }
    ::freeaddrinfo(found);
    if (fd < 0) throw Error("no service listens at " + host_ + ":" + port_);
    return fd;
  }

  std::string path_, host_, port_;
};

}  // namespace draftwire
