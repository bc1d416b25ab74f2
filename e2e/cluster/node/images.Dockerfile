# The images that the pods of a new cluster run, one target each.
ARG SYSTEM
FROM $SYSTEM AS system
COPY collect /
# kube-proxy calls iptables, which loads its matches as libraries.
RUN /collect /for/kube-proxy /usr/sbin/xtables-nft-multi /usr/lib/*/xtables/*.so \
  && for family in iptables ip6tables; do for what in '' -save -restore; do \
    ln -s xtables-nft-multi "/for/kube-proxy/usr/sbin/$family$what"; done; done
# The provisioner of volumes makes and removes folders by a pod on their node.
RUN /collect /for/volume-helper /usr/bin/sh /usr/bin/mkdir /usr/bin/rm

FROM scratch AS program
ARG PROGRAM
COPY $PROGRAM /usr/local/bin/
ENV PATH=/usr/local/bin

FROM scratch AS pause
COPY pause /
ENTRYPOINT ["/pause"]

FROM scratch AS coredns
COPY coredns /
ENTRYPOINT ["/coredns"]

FROM scratch AS kube-proxy
COPY --from=system /for/kube-proxy /
COPY kube-proxy /usr/local/bin/
ENV PATH=/usr/local/bin:/usr/sbin

FROM scratch AS volume-helper
COPY --from=system /for/volume-helper /
ENV PATH=/usr/bin
