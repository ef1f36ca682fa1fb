/*
 * The service of the blackout benchmark: it answers every byte with itself. One thread, one epoll instance, no heap
 * of note: what a move of it costs is what a move costs at least. In C because a runtime's threads and heap would be
 * measured with it.
 *
 *   echo PORT [WORKERS [MEGABYTES [zero|text|noise [IDLE]]]]
 *
 * WORKERS processes listen on a port each, PORT and the following. The first one keeps MEGABYTES of memory that it has
 * written: nothing but zeros, what a compressor likes, or what it can do nothing with. IDLE more processes only sleep.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct epoll_event got[64], add = { .events = EPOLLIN };
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
	char buf[16384];

	if (listener < 0 || poll < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
	    bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 4096))
		die("listen");
	add.data.fd = listener;
	if (epoll_ctl(poll, EPOLL_CTL_ADD, listener, &add))
		die("epoll_ctl");
	for (;;) {
		int n = epoll_wait(poll, got, 64, -1);

		for (int i = 0; i < n; i++) {
			int fd = got[i].data.fd;
			ssize_t len;

			if (fd == listener) {
				add.data.fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
				if (add.data.fd < 0)
					continue;
				setsockopt(add.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				if (epoll_ctl(poll, EPOLL_CTL_ADD, add.data.fd, &add))
					die("epoll_ctl");
				continue;
			}
			len = read(fd, buf, sizeof buf);
			/* Answers that the client does not read are its own loss. */
			if (len == 0 || (len > 0 && write(fd, buf, len) < 0))
				close(fd);
		}
	}
}

static void keep(size_t bytes, const char *what)
{
	static const char text[] = "a line of the log of a service, with a number in it: ";
	uint64_t x = 88172645463325252ull;
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	if (!strcmp(what, "zero"))
		memset(p, 0, bytes);
	for (size_t i = 0; strcmp(what, "zero") && i + 64 <= bytes; i += 64) {
		if (!strcmp(what, "text")) {
			memcpy(p + i, text, sizeof text - 1);
			memcpy(p + i + 56, &i, sizeof i);
			continue;
		}
		for (int j = 0; j < 64; j += 8) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			memcpy(p + i + j, &x, sizeof x);
		}
	}
}

int main(int argc, char **argv)
{
	int port = argc > 1 ? atoi(argv[1]) : 7000, workers = argc > 2 ? atoi(argv[2]) : 1;
	size_t megabytes = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
	int idle = argc > 5 ? atoi(argv[5]) : 0;
	struct rlimit files;

	close_range(3, ~0u, 0); /* what whoever started this forgot to */
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	if (megabytes)
		keep(megabytes << 20, argc > 4 ? argv[4] : "noise");
	for (int i = 0; i < idle; i++)
		if (!fork())
			for (;;)
				pause();
	for (int i = 1; i < workers; i++)
		if (!fork())
			serve(port + i);
	serve(port);
}
